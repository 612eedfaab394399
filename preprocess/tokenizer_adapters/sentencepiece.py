"""Owns tokenizers made of a sentencepiece model: byte pairs and unigram, read from the model's protobuf.

What sentencepiece does to a text, and what does it here:

    normalize by the compiled table, drop extra spaces  normalizers
    a space in front, spaces become "▁"                 normalizers, once for each stretch between control tokens
    cut out user-defined symbols, longest first         pre-tokenizer; the model then takes the cut as one token
    join pieces by score, or find the best path         BPE with merges in the order of scores, or Unigram
    unknown characters become bytes, or one <unk>       byte_fallback, fuse_unk

Two things differ, both where a model has a compiled table, and as in every tokenizer.json made of such a model:
`tokenizers` applies the table to graphemes of up to five bytes and to single characters, sentencepiece to the longest
match, so that rules for longer sequences (half-width kana with a voicing mark, Hangul in jamo) have no effect here; and
sentencepiece keeps user-defined symbols from the table, which matters for symbols that the table changes. Loading warns
of such symbols.

Control tokens are not recognised in a text by sentencepiece itself; the Python classes around it cut texts at them and
encode what is between, which added tokens do here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers

from forebay.errors import CheckpointError, NotOffered

logger = logging.getLogger(__name__)

_Piece = model_pb2.ModelProto.SentencePiece
_UNIGRAM, _BPE = model_pb2.TrainerSpec.UNIGRAM, model_pb2.TrainerSpec.BPE


def read_model(path: Path) -> Any:
    """The model's protobuf. Raises CheckpointError for a file that is none, NotOffered for a kind that is not served."""
    model = model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint is not a sentencepiece model: {error}") from error
    if not model.pieces:
        raise CheckpointError(f"{path.name} of the checkpoint is a sentencepiece model without pieces")
    kind = model.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise NotOffered(f"sentencepiece models of kind {kind} are not offered; unigram (1) and byte pairs (2) are")
    if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise NotOffered("sentencepiece models that write spaces in another way than in front of words are not offered")
    if any(piece.type == _Piece.UNUSED for piece in model.pieces):
        raise NotOffered("sentencepiece models with unused pieces are not offered")
    return model


def build(
    model: Any,
    *,
    renamed: Mapping[int, str],
    controls: Collection[str],
    dummy_prefix: bool | None = None,
    prefix_once: bool = False,
) -> tokenizers.Tokenizer:
    """The tokenizer of a model.

    `renamed` gives pieces other names, by id; `controls` are user-defined symbols that only a template may write.
    `dummy_prefix` overrides the model's own setting; with `prefix_once` only the text's beginning gets the space.
    """
    names = [renamed.get(i, piece.piece) for i, piece in enumerate(model.pieces)]
    if len(set(names)) < len(names):
        raise CheckpointError("tokenizer.model gives two ids one name")
    special = {
        names[i]
        for i, piece in enumerate(model.pieces)
        if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN) or i in renamed or names[i] in controls
    }
    symbols = [
        names[i]
        for i, piece in enumerate(model.pieces)
        if piece.type == _Piece.USER_DEFINED and names[i] not in special
    ]
    if dummy_prefix is None:
        dummy_prefix = model.normalizer_spec.add_dummy_prefix
    _warn_of_changed(symbols, model.normalizer_spec)
    tokenizer = tokenizers.Tokenizer(_model(model, names, symbols, special))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model.normalizer_spec, dummy_prefix and not prefix_once))
    cuts: list[Any] = []
    if dummy_prefix and prefix_once:
        cuts.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False))
    if symbols:
        cuts.append(pre_tokenizers.Split(tokenizers.Regex(_any_of(symbols)), behavior="isolated"))
    if model.trainer_spec.byte_fallback:
        # "<0x41>" as text is no byte, but has the name of one: Unigram finds it anywhere, BPE where it stands alone.
        is_unigram = model.trainer_spec.model_type == _UNIGRAM
        literal = r"<(?=0x[0-9A-F]{2}>)" if is_unigram else r"\A<(?=0x[0-9A-F]{2}>\z)"
        if is_unigram or symbols:
            cuts.append(pre_tokenizers.Split(tokenizers.Regex(literal), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    strips = dummy_prefix or model.normalizer_spec.remove_extra_whitespaces
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(content=" ", left=1, right=0)] if strips else []),
        ]
    )
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in names if name in special]
    )
    return tokenizer


def _model(model: Any, names: list[str], symbols: list[str], special: set[str]) -> Any:
    spec = model.trainer_spec
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == _Piece.UNKNOWN), None)
    if unknown is None:
        raise CheckpointError("tokenizer.model has no piece for unknown text")
    if spec.model_type == _UNIGRAM:
        scores = [0.0 if piece.type == _Piece.USER_DEFINED else piece.score for piece in model.pieces]
        return models.Unigram(list(zip(names, scores, strict=True)), unknown, spec.byte_fallback)
    return models.BPE(
        {name: i for i, name in enumerate(names)},
        _merges(model, special),
        unk_token=names[unknown],
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
        ignore_merges=bool(symbols),  # a symbol is one token though no merges lead to it
    )


def _merges(model: Any, special: set[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best score first: sentencepiece joins by the score of the join."""
    ids = {p.piece: i for i, p in enumerate(model.pieces) if p.type == _Piece.NORMAL and p.piece not in special}
    found = []
    for piece in sorted(ids, key=lambda piece: (-model.pieces[ids[piece]].score, ids[piece])):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        found += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return found


def _warn_of_changed(symbols: list[str], spec: Any) -> None:
    if not spec.precompiled_charsmap:
        return
    table = normalizers.Precompiled(spec.precompiled_charsmap)
    changed = [symbol for symbol in symbols if table.normalize_str(symbol) != symbol]
    if changed:
        logger.warning(
            "%d user-defined symbols of tokenizer.model are not recognised in text, for normalization changes them: %s",
            len(changed),
            ", ".join(map(repr, changed[:5])),
        )


def _normalizers(spec: Any, dummy_prefix: bool) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(tokenizers.Regex(pattern), content)
            for pattern, content in ((r"\A +", ""), (" {2,}", " "), (r"[ ▁]+\z", ""))
        ]
    if dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return [*steps, normalizers.Replace(" ", "▁")]


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for the longest of the words, as a tree of their letters: some models have a thousand."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _tree_pattern(root)


def _tree_pattern(node: dict[str, Any]) -> str:
    branches = [re.escape(letter) + _tree_pattern(rest) for letter, rest in node.items() if letter]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"
