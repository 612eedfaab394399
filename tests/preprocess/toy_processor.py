"""A processor without a model: an item is two features, its marker becomes as many <patch>, and what it was given is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EMBEDDINGS, EncodedPrompt, MediaItem
from preprocess.processors.placeholders import is_expanded, place, replace_ids, replace_markers
from preprocess.processors.processor import PromptText
from preprocess.tokenizer import TextTokenizer

FEATURES = {"image": "<patch>", "audio": "<sound>"}
TOKENS = ["<image>", "<audio>", "<patch>", "<sound>"]


class ToyProcessor:
    """`markers` are what stands for an item in a text: control tokens of the tokenizer, or plain text."""

    modalities = ("image", "audio")
    sample_rate = 16_000

    def __init__(self, tokenizer: TextTokenizer, markers: dict[str, str]) -> None:
        self._tokenizer, self._markers = tokenizer, markers
        ids = tokenizer.backend.token_to_id
        self._feature_ids = {modality: {ids(token)} for modality, token in FEATURES.items()}
        self.prepared: list[tuple[DecodedMedia, int]] = []
        self.texts: list[PromptText] = []

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        self.prepared.append((media, num_items))
        if media.modality == "image" and media.pixels.width > 1_000:
            problem = f"the picture is {media.pixels.width:,} wide; this model takes 1,000"
            raise InvalidRequest(problem, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE)
        data = np.asarray(media.pixels) if media.modality == "image" else media.samples
        return MediaItem(media.modality, {"pixels": data}, 2)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        rows = [part for value in embeddings.values for part in (value if value.ndim == 3 else [value])]
        return [MediaItem(embeddings.modality, {EMBEDDINGS: value}, len(value)) for value in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return self._markers[modality]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        self.texts.append(prompt)
        text = replace_markers(
            prompt, items, self._markers, lambda item, _: FEATURES[item.modality] * item.num_features
        )
        return self._placed(prompt.encode(text), items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        token_ids = list(token_ids)
        if not is_expanded(token_ids, items, self._feature_ids):
            markers = {m: self._tokenizer.encode(text, add_special_tokens=False) for m, text in self._markers.items()}

            def ids(item: MediaItem, _: int) -> list[int]:
                return list(self._feature_ids[item.modality]) * item.num_features

            token_ids = replace_ids(token_ids, items, markers, ids)
        return self._placed(token_ids, items)

    def _placed(self, token_ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return EncodedPrompt(token_ids, place(token_ids, items, self._feature_ids))
