"""Owns the prompts and pictures of Pixtral in mistral's own format, whose params.json says all there is to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.cubic import resized
from preprocess.processors.patch_grid import PatchGrid, row_tokens
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, normalization, rgb
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.tokens import token_text

_WHITE = 255.0


@processor("mistral-format")
class PixtralProcessor:
    """Pictures of any size, shrunk into the largest square; `[IMG]` becomes rows that end in `[IMG_BREAK]`."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        params = Settings(files.config, "params.json")
        vision = params.section("vision_encoder")
        self._patch_size = vision.integer("patch_size")
        largest = vision.integer("max_image_size" if "max_image_size" in vision.data else "image_size", 1024)
        self._grid = PatchGrid(largest, largest, self._patch_size, round)
        self._hidden_size = params.integer("dim")
        image_id = vision.integer("image_token_id", 10)
        self._runs = TokenRuns(files.tokenizer, {"image": image_id}, self._expanded)
        row_ends = {"image_break_token_id": 12, "image_end_token_id": 13}
        self._tokens = (
            self._runs.markers["image"],
            *(token_text(files.tokenizer, vision.integer(name, given), name) for name, given in row_ends.items()),
        )

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """Pixels are bytes where the picture has its size already; what OpenCV would make of others is no whole number."""
        assert isinstance(media, Image)
        image = rgb(media.pixels)
        rows, columns = self._grid.of(*image.size)
        size = columns * self._patch_size, rows * self._patch_size
        if image.size == size:
            tensors = {"pixels": channels_first(image), "normalization": normalization(1 / _WHITE, CLIP_MEAN, CLIP_STD)}
        else:
            pixels = resized(np.asarray(image), *size) / np.float32(_WHITE)  # (H, W, 3)
            pixels = (pixels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
            tensors = {"pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1))}
        return MediaItem("image", tensors, rows * columns, (rows, columns))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        return self._grid.embedded(embeddings, self._hidden_size)

    def chat_marker(self, modality: str, index: int) -> str:
        return self._tokens[0]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _expanded(self, item: MediaItem, index: int) -> str:
        return row_tokens(item, self._tokens)
