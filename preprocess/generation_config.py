"""Owns what generation_config.json and config.json say about sampling: defaults, and the ids that end a sequence."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from forebay.errors import CheckpointError
from forebay.v1 import sampling_pb2
from preprocess.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

# The keys that vLLM takes over. `do_sample` is not among them there either: a checkpoint that says false and gives no
# temperature is sampled at 1 unless the request asks for 0. `max_new_tokens` is left out: no answer is cut unasked.
_DEFAULTS: dict[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 100,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= 0 and value == int(value),
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
}


# Where config.json of a multimodal checkpoint describes its text model.
_TEXT_SECTIONS = ("text_config", "llm_config", "language_config")


def default_sampling(generation_config: dict[str, Any]) -> sampling_pb2.SamplingParams:
    """The defaults of a generation_config.json; values out of range are left out, with a warning."""
    params = sampling_pb2.SamplingParams()
    for name, in_range in _DEFAULTS.items():
        value = generation_config.get(name)
        if value is None or (name == "top_k" and value == -1):
            continue
        if type(value) not in (int, float) or not math.isfinite(value) or not in_range(value):
            logger.warning("generation_config.json: %s is %r, which is out of range; it is left out", name, value)
            continue
        setattr(params, name, int(value) if name == "top_k" else float(value))
    return params


def eos_token_ids(
    generation_config: dict[str, Any], config: dict[str, Any], tokenizer: TextTokenizer | None
) -> tuple[int, ...]:
    """Ids that end a sequence: generation_config.json's, else config.json's, and the tokenizer's own."""
    texts = (section for name in _TEXT_SECTIONS if isinstance(section := config.get(name), dict))
    sources = (generation_config, config, *texts)
    found = next((ids for source in sources if (ids := _ids(source.get("eos_token_id")))), [])
    names = [tokenizer.named_tokens.get("eos_token"), *tokenizer.end_tokens] if tokenizer else []
    own = [tokenizer.backend.token_to_id(name) for name in names if name]
    return tuple(dict.fromkeys([*found, *(token_id for token_id in own if token_id is not None)]))


def decoder_start_token_id(generation_config: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The id that the decoder of an encoder-decoder begins with; None for other models.

    Raises CheckpointError if an encoder-decoder's files name none.
    """
    if config.get("is_encoder_decoder") is not True:
        return None
    for name in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation_config, config):
            if ids := _ids(source.get(name)):
                return ids[0]
    raise CheckpointError("config.json is of an encoder-decoder and has no decoder_start_token_id")


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
