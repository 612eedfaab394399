"""Vocabularies of sentencepiece and tiktoken give the ids of sentencepiece itself and of tiktoken's algorithm."""

import functools
import itertools
import math
import tempfile
from pathlib import Path

import pytest
import regex
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import CheckpointError, NotOffered
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_adapters import sentencepiece as from_sentencepiece
from preprocess.tokenizer_adapters import tiktoken as from_tiktoken
from preprocess.tokenizer_adapters.recipes import CL100K_SPLIT, QWEN_SPLIT
from tests.preprocess.remote_folders import ranks, sentencepiece_model, tiktoken_file

PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SYMBOLS = ("<sep>", "<sep", "12", "<a b>")
SPACES = ("▁▁",)
OPTIONS = {
    "plain": PLAIN,
    "bytes": PLAIN | {"byte_fallback": True},
    "no-prefix": PLAIN | {"add_dummy_prefix": False},
    "symbols": PLAIN | {"user_defined_symbols": SYMBOLS + SPACES},
    "symbols-bytes": PLAIN | {"user_defined_symbols": SYMBOLS + SPACES, "byte_fallback": True},
    "extra-spaces": {"normalization_rule_name": "identity", "byte_fallback": True},
    "nfkc": {"byte_fallback": True},
    "nfkc-no-prefix-symbols": {"add_dummy_prefix": False, "user_defined_symbols": SYMBOLS},
}
CASES = [(kind, name) for kind in ("bpe", "unigram") for name in OPTIONS]
WORDS = [
    "Hello", " ", "  ", "\n", "\n\n", "\t", "\r\n", "3.14", "12", "121", "😀", "東京", "é", "ß", "Привет", "▁", "<sep>",
    "<sep", "<a b>", "<0x41>", "ﬁ", "①", "　", "don't", "DON'T", "\xa0", "가", "क्षि", "1234567", "²",
]  # fmt: skip
MIXED = st.lists(st.sampled_from(WORDS), max_size=10).map("".join)
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@functools.cache
def built(kind: str, name: str) -> tuple[sentencepiece.SentencePieceProcessor, TextTokenizer]:
    """sentencepiece's own tokenizer and ours, of one model."""
    size = {} if kind == "bpe" else {"vocab_size": 460 if OPTIONS[name].get("byte_fallback") else 180}
    data = sentencepiece_model(kind, **(OPTIONS[name] | size))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(data)
        model = from_sentencepiece.read_model(Path(folder) / "tokenizer.model")
    ours = from_sentencepiece.build(model, renamed={}, controls=())
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    return reference, TextTokenizer(ours, named_tokens={}, chat_template=None)


def assert_same_ids(kind: str, name: str, text: str) -> None:
    reference, ours = built(kind, name)
    expected, ids = reference.encode(text), ours.encode_user_text(text, add_special_tokens=False)
    if kind == "unigram" and ids != expected:  # "\n\n" + "\n" is as good a path as "\n" + "\n\n"
        scores = [sum(map(reference.get_score, path)) for path in (ids, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4) and reference.decode(ids) == reference.decode(expected)
        ids = expected
    assert ids == expected, [reference.id_to_piece(i) for i in expected]


@pytest.mark.parametrize(("kind", "name"), CASES)
@given(text=MIXED)
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_sentencepiece(kind, name, text):
    assert_same_ids(kind, name, text)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if "nfkc" not in case[1]])
@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_ids_of_any_text_are_those_of_sentencepiece(kind, name, text):
    assert_same_ids(kind, name, text)


@pytest.mark.parametrize(("kind", "name"), CASES)
@given(text=MIXED)
@settings(max_examples=40, deadline=None)
def test_text_of_ids_is_that_of_sentencepiece(kind, name, text):
    reference, ours = built(kind, name)
    ids = [i for i in reference.encode(text) if not reference.is_unknown(i)]
    expected, decoded = reference.decode(ids), ours.decode(ids, skip_special_tokens=True)
    if "remove_extra_whitespaces" not in OPTIONS[name]:  # sentencepiece then takes away all spaces in front, not one
        expected, decoded = expected.lstrip(" "), decoded.lstrip(" ")
    assert decoded == expected


@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_bytes_make_every_text_come_back(text):
    _, ours = built("bpe", "bytes")
    if "▁" not in text:
        assert ours.decode(ours.encode_user_text(text, add_special_tokens=False), skip_special_tokens=True) == text


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_piece_keeps_its_id(kind, name):
    reference, ours = built(kind, name)
    assert ours.tokens(range(ours.vocab_size)) == [reference.id_to_piece(i) for i in range(reference.get_piece_size())]


def test_control_tokens_cut_the_text_and_each_part_begins_anew():
    reference, ours = built("bpe", "bytes")
    expected = [*reference.encode("Hello"), reference.eos_id(), *reference.encode("the fox")]
    assert ours.encode("Hello</s>the fox", add_special_tokens=False) == expected


def test_prefix_can_be_kept_to_the_beginning_of_the_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("bpe", **OPTIONS["bytes"]))
    model = from_sentencepiece.read_model(tmp_path / "tokenizer.model")
    ours = from_sentencepiece.build(model, renamed={}, controls=(), prefix_once=True)
    tokens = ours.encode("the</s>the", add_special_tokens=False).tokens
    end = tokens.index("</s>")
    assert "".join(tokens[:end]) == "▁the" and "".join(tokens[end + 1 :]) == "the"


def test_symbols_that_normalization_changes_are_warned_of(tmp_path, caplog):
    for symbols, expected in ((SYMBOLS, []), (SYMBOLS + SPACES, ["'▁▁'"])):
        caplog.clear()
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("bpe", user_defined_symbols=symbols))
        from_sentencepiece.build(from_sentencepiece.read_model(tmp_path / "tokenizer.model"), renamed={}, controls=())
        assert [record.args[1] for record in caplog.records] == expected


@pytest.mark.parametrize("kind", ["char", "word"])
def test_other_kinds_of_sentencepiece_are_not_offered(tmp_path, kind):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    with pytest.raises(NotOffered, match="sentencepiece models of kind"):
        from_sentencepiece.read_model(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_broken_sentencepiece_model_names_the_file(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        from_sentencepiece.read_model(tmp_path / "tokenizer.model")


def tiktoken_ids(text: str, split: str) -> list[int]:
    """tiktoken's algorithm, written out: the join of lowest rank first, the leftmost of equals."""
    known, ids = ranks(), []
    for word in regex.findall(split, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            joins = [known.get(left + right, math.inf) for left, right in itertools.pairwise(parts)]
            best = min(joins)
            if best == math.inf:
                break
            at = joins.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [known[part] for part in parts]
    return ids


@functools.cache
def byte_pairs(split: str) -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.tiktoken").write_bytes(tiktoken_file())
        backend = from_tiktoken.build(Path(folder) / "x.tiktoken", split=split, nfc=False)
    return TextTokenizer(backend, named_tokens={}, chat_template=None)


@pytest.mark.parametrize("split", [CL100K_SPLIT, QWEN_SPLIT], ids=["cl100k", "qwen"])
@given(text=MIXED | ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_tiktoken(split, text):
    ids = byte_pairs(split).encode_user_text(text, add_special_tokens=False)
    assert ids == tiktoken_ids(text, split)
    assert byte_pairs(split).decode(ids, skip_special_tokens=True) == text


def test_splits_differ_in_how_many_digits_they_keep_together():
    def cuts(split):
        return [text for text, _ in byte_pairs(split).backend.pre_tokenizer.pre_tokenize_str("12345")]

    assert cuts(CL100K_SPLIT) == ["123", "45"] and cuts(QWEN_SPLIT) == list("12345")


def test_normal_form_is_taken_first_where_asked(tmp_path):
    (tmp_path / "x").write_bytes(tiktoken_file())
    composed = from_tiktoken.build(tmp_path / "x", split=QWEN_SPLIT, nfc=True)
    assert composed.encode("e\u0301").ids == composed.encode("é").ids == tiktoken_ids("é", QWEN_SPLIT)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"aGk= 0\n", "lacks tokens of single bytes"),
        (b"aGk= 1\n", "leaves out ids"),
        (b"aGk= 0\naG8= 0\n", "leaves out ids"),
        (b"aGk= one\n", "is not a tiktoken file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a tiktoken file"),
    ],
)
def test_broken_tiktoken_file_is_refused_by_name(tmp_path, content, problem):
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.tiktoken.*{problem}"):
        from_tiktoken.read_ranks(tmp_path / "x.tiktoken")


def test_kinds_of_files_are_told_apart(tmp_path):
    for name, data, expected in (("a", tiktoken_file(), True), ("b", sentencepiece_model(), False), ("c", b"", False)):
        (tmp_path / name).write_bytes(data)
        assert from_tiktoken.is_tiktoken_file(tmp_path / name) is expected
