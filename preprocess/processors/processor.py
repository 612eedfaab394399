"""Owns the interface of a processor: what one architecture makes of media, and of the prompts that hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessorFiles:
    """What a checkpoint says about media: JSON files as data, empty where there is none, and its tokenizer.

    `config` is config.json (params.json of mistral's own format), `preprocessor` preprocessor_config.json, `processor`
    processor_config.json, `video_preprocessor` video_preprocessor_config.json. settings.py says which holds what.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    processor: Mapping[str, Any]
    tokenizer: TextTokenizer
    video_preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class PromptText:
    """A prompt's text on its way to ids.

    In a rendered chat, names of control tokens that users typed are plain text: only what `write` gives is a control token.
    """

    def __init__(
        self,
        text: str,
        *,
        encode: Callable[[str, bool], list[int]],
        write: Callable[[str], str] = lambda text: text,
        adds_special_tokens: bool,
    ) -> None:
        """`encode(text, add_special_tokens)`; `adds_special_tokens` says whether this prompt is to get <s> and its like."""
        self.text, self.write, self.adds_special_tokens = text, write, adds_special_tokens
        self._encode = encode

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text made of parts of `text` and of what `write` gave."""
        return self._encode(text, self.adds_special_tokens if add_special_tokens is None else add_special_tokens)


class Processor(Protocol):
    """What a multimodal checkpoint makes of media. Threads may share one; nothing here imports torch."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those it takes, of image, video and audio."""

    @property
    def sample_rate(self) -> int | None:
        """Samples per second that audio has to have; None without audio."""

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """The item of decoded media, in a prompt with `num_items` of its modality.

        Raises InvalidRequest (MEDIA_UNUSABLE) for what the model cannot take, such as an aspect ratio.
        """

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """The items of precomputed embeddings; raises InvalidRequest (MEDIA_UNUSABLE) for wrong shapes or missing extras."""

    def chat_marker(self, modality: str, index: int) -> str:
        """What stands for the index-th item (from 0) of a modality in a message, where the chat template writes nothing."""

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        """The prompt with every item in the place of its marker, in order.

        Raises InvalidRequest (MEDIA_COUNT) where markers and items differ in number.
        """

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """The same for a prompt that is token ids: its markers' ids are expanded, unless they are expanded already."""
