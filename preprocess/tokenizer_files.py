"""Owns how the files of a checkpoint folder become a tokenizer: without torch, and without running code of its own.

`AutoTokenizer` imports torch wherever it is installed, so it is not used: tokenizer.json is read as it is, the files of
tokenizers that only code of the repository reads are read by preprocess/tokenizer_adapters/, and other older files are
converted by the tokenizer class of transformers that the checkpoint names.
"""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from forebay.errors import CheckpointError, FailedPrecondition, NotOffered
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.json_files import read_json
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_adapters.adapter import adapt_tokenizer, own_template
from preprocess.tokenizer_adapters.recipes import own_code
from preprocess.tokenizer_adapters.tekken import read_tekken

logger = logging.getLogger(__name__)

# Files from which transformers can convert, and the class that reads them where the checkpoint names none.
_OLDER_FILES = (
    (("vocab.json", "merges.txt"), "GPT2Tokenizer"),
    (("tokenizer.model",), "LlamaTokenizer"),
    (("spiece.model",), "T5Tokenizer"),
    (("sentencepiece.bpe.model",), "XLMRobertaTokenizer"),
    (("vocab.txt",), "BertTokenizer"),
)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> TextTokenizer | None:
    """The tokenizer of a folder; None if the folder has no tokenizer files at all.

    Raises CheckpointError for a file that cannot be read, FailedPrecondition (NO_TOKENIZER) where the files are of a kind
    that cannot be converted, and NotOffered where only code of the folder could read them and `trust_remote_code` asks
    for it to be run.
    """
    if (folder / "tokenizer.json").is_file():
        kinds: list[type] = [PreTrainedTokenizerFast]
    else:
        if adapted := adapt_tokenizer(folder):
            return adapted
        if (folder / "tekken.json").is_file():
            return read_tekken(folder, own_template(folder, read_json(folder / "tokenizer_config.json")))
        _refuse_own_code(folder, trust_remote_code)
        found = [(names, kind) for names, kind in _OLDER_FILES if all((folder / name).is_file() for name in names)]
        if not found:
            return None
        kinds = [*_named_classes(folder), *_classes([found[0][1]])]
        logger.info("the checkpoint has no tokenizer.json; converting %s", " and ".join(found[0][0]))
    tokenizer = _load(folder, kinds)
    return TextTokenizer(
        tokenizer.backend_tokenizer,
        named_tokens=dict(tokenizer.special_tokens_map),
        chat_template=_chat_template(folder, tokenizer),
    )


def _refuse_own_code(folder: Path, trust_remote_code: bool) -> None:
    """Raises where the tokenizer is code of the folder, which transformers does not have."""
    name = own_code(read_json(folder / "tokenizer_config.json"))
    if name is None or _classes([name]):
        return
    remedy = (
        "save it once elsewhere with AutoTokenizer.from_pretrained(..., trust_remote_code=True).save_pretrained(...) to get "
        "a tokenizer.json, or give another folder with --tokenizer"
    )
    if trust_remote_code:
        raise NotOffered(
            f"the tokenizer {name} is code of the checkpoint, and running it is not offered: --trust-remote-code serves "
            f"only checkpoints that do without; {remedy}"
        )
    raise FailedPrecondition(
        f"the checkpoint has no tokenizer.json, and its tokenizer {name} is code of its own, as --trust-remote-code is for; "
        f"no such code is run here: {remedy}",
        ErrorReason.ERROR_REASON_NO_TOKENIZER,
    )


def _load(folder: Path, kinds: list[type]) -> PreTrainedTokenizerFast:
    tried: list[str] = []
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its hints are for people who fine-tune
    try:
        for kind in kinds:
            try:
                tokenizer = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            except Exception as error:
                tried.append(f"{kind.__name__}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                continue
            if isinstance(tokenizer, PreTrainedTokenizerFast):
                return tokenizer
            tried.append(f"{kind.__name__} has no fast form")
    finally:
        transformers_logging.set_verbosity(verbosity)
    if (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"tokenizer.json of the checkpoint cannot be read ({'; '.join(tried)})")
    problem = "; ".join(tried) or "no tokenizer class is known for them"
    raise FailedPrecondition(
        f"the checkpoint has no tokenizer.json, and its older tokenizer files cannot be converted ({problem}); save it "
        "once with AutoTokenizer.from_pretrained(...).save_pretrained(...) to get a tokenizer.json",
        ErrorReason.ERROR_REASON_NO_TOKENIZER,
    )


def _named_classes(folder: Path) -> list[type]:
    """Tokenizer classes of transformers that the checkpoint names, or that belong to its model type."""
    named = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    names = [named.removesuffix("Fast"), named] if isinstance(named, str) else []
    model_type = read_json(folder / "config.json").get("model_type")
    if isinstance(model_type, str) and re.fullmatch(r"[a-z0-9_]+", model_type):
        try:
            module = importlib.import_module(f"transformers.models.{model_type}.tokenization_{model_type}")
        except ImportError:
            pass  # many model types share another one's tokenizer; the kind of file decides then
        else:
            names += getattr(module, "__all__", [])
    return _classes(names)


def _classes(names: list[str | None]) -> list[type]:
    transformers = importlib.import_module("transformers")
    found = (getattr(transformers, name, None) for name in dict.fromkeys(names) if name)
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)]
    return list(dict.fromkeys(kinds))


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The template for plain conversations; a checkpoint may have several, by name.

    Multimodal checkpoints may have theirs in chat_template.json, which tokenizers do not read.
    """
    template = tokenizer.chat_template
    if not (folder / "chat_template.jinja").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template") or template
    if isinstance(template, list):
        template = {named.get("name"): named.get("template") for named in template if isinstance(named, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None
