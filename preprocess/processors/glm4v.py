"""Pictures of GLM-4V (GLM, 2024): squeezed to one square; all cells of a picture have one position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem, PlacedItem
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, normalization, rgb
from preprocess.processors.placeholders import check_counts, replace_ids, replace_markers
from preprocess.processors.precomputed import embedded_item, rows_by_counts
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import model_settings
from preprocess.processors.tokens import token_id

_BEGIN, _CELL, _END = "<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>"


class Glm4VProcessor:
    """A picture's features stand from the token that begins it to the one that ends it, as many cells between them."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config = model_settings(files)
        vision = config.section("vision_config")
        self._side = vision.integer("image_size")
        self._num_cells = (self._side // vision.integer("patch_size") // 2) ** 2
        self._hidden_size = config.integer("hidden_size")
        self._begin, self._cell, self._end = (token_id(files.tokenizer, name) for name in (_BEGIN, _CELL, _END))
        self._normalization = normalization(1 / 255, CLIP_MEAN, CLIP_STD)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (3, S, S) uint8."""
        picture = rgb(media.pixels).resize((self._side, self._side), PilImages.Resampling.BICUBIC)
        tensors = {"pixels": channels_first(picture), "normalization": self._normalization}
        return MediaItem("image", tensors, self._num_cells + 2)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (cells + 2, D), with the rows that begin and end a picture."""
        num_items = sum(len(value) if value.ndim == 3 else 1 for value in embeddings.values)
        rows = rows_by_counts(embeddings, self._hidden_size, [self._num_cells + 2] * num_items)
        return [embedded_item("image", value) for value in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return _BEGIN + _CELL + _END

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        written = _BEGIN + _CELL * self._num_cells + _END
        text = replace_markers(prompt, items, {"image": _BEGIN + _CELL + _END}, lambda *_: written)
        return self._placed(prompt.encode(text), items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        token_ids = list(token_ids)
        if len(self._pictures(token_ids)) != len(items):
            marker = {"image": (self._begin, self._cell, self._end)}
            token_ids = replace_ids(token_ids, items, marker, lambda *_: self._expanded)
        return self._placed(token_ids, items)

    @property
    def _expanded(self) -> list[int]:
        return [self._begin, *[self._cell] * self._num_cells, self._end]

    def _pictures(self, token_ids: list[int]) -> list[int]:
        """Where pictures begin."""
        expanded = self._expanded
        begins = (index for index, token_id in enumerate(token_ids) if token_id == self._begin)
        return [index for index in begins if token_ids[index : index + len(expanded)] == expanded]

    def _placed(self, token_ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        starts = self._pictures(token_ids)
        check_counts({"image": len(starts)}, items)
        if not items:
            return EncodedPrompt(token_ids)
        placed = [PlacedItem(item, ((start, item.num_features),)) for start, item in zip(starts, items, strict=True)]
        steps = np.ones(len(token_ids), np.int64)  # from the position of the token before
        steps[0] = 0
        for start in starts:
            steps[start + 2 : start + 1 + self._num_cells] = 0  # the first cell's is all other cells' too
        return EncodedPrompt(token_ids, tuple(placed), np.cumsum(steps)[None])


@processor("ChatGLMModel", "ChatGLMForConditionalGeneration")
def glm4v(files: ProcessorFiles) -> Glm4VProcessor | None:
    """None for ChatGLM without pictures."""
    return Glm4VProcessor(files) if files.config.get("vision_config") else None
