"""Pictures of DeepSeek-VL2 (Wu et al., 2024): padded to a square, and to the best of some sizes that is cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImages
from PIL import ImageOps
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.pixels import channels_first, normalization, rgb
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.tokens import token_id

_MOST_TILED = 2  # pictures of one prompt; none of more is cut into tiles
_SIZES = tuple((384 * cols, 384 * rows) for cols in range(1, 10) for rows in range(1, 10) if cols * rows <= 9)
Size = tuple[int, int]  # width, height


def best_size(size: Size, candidates: Sequence[Size]) -> Size:
    """The one of the candidates that keeps most of the picture's pixels, and of those the one that wastes least."""
    width, height = size

    def kept(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - candidate[0] * candidate[1]

    return max(candidates, key=kept)


class DeepseekVl2Processor:
    """A picture and its tiles as one item; each of its features is an <image> of the prompt."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, own = model_settings(files), Settings(files.processor, "processor_config.json")
        image_id = token_id(files.tokenizer, own("image_token", "<image>"))
        self._runs = TokenRuns(files.tokenizer, {"image": image_id})
        self._candidates = _sizes(own, own("candidate_resolutions", config("candidate_resolutions", _SIZES)))
        self._side = self._candidates[0][0]
        vision, projector = config.section("vision_config"), config.section("projector_config")
        num_patches = self._side // own.integer("patch_size", vision.integer("patch_size", 14))
        join = own.integer("downsample_ratio", projector.integer("downsample_ratio", 2))
        self._cells = math.ceil(num_patches / join)  # along a tile's side
        text = config.section("language_config")
        self._hidden_size, self._bos_id = text.integer("hidden_size"), text("bos_token_id", None)
        mean, std = own("image_mean", (0.5,) * 3), own("image_std", (0.5,) * 3)
        self._ground = tuple(int(value * 255) for value in mean)
        plain = not own.flag("normalize", True)
        self._normalization = normalization(1 / 255, (0,) * 3 if plain else mean, (1,) * 3 if plain else std)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (1 + tiles, 3, S, S) uint8; images_spatial_crop (columns, rows) int64 of tiles."""
        picture, side = rgb(media.pixels), self._side
        if round(side * min(picture.size) / max(picture.size)) < 1:
            raise unusable(f"a picture of {picture.width} x {picture.height} is too narrow for a square of {side}")
        width, height = best_size(picture.size, self._candidates) if num_items <= _MOST_TILED else (side, side)
        padded = self._pad(picture, (width, height))
        corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
        tiles = [padded.crop((left, top, left + side, top + side)) for left, top in corners]
        pixels = np.stack([channels_first(tile) for tile in (self._pad(picture, (side, side)), *tiles)])
        grid = np.array([width // side, height // side], np.int64)
        tensors = {"pixels": pixels, "normalization": self._normalization, "images_spatial_crop": grid}
        return MediaItem("image", tensors, self._num_rows((width, height)))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (rows, D), as many as a picture of some size has."""
        possible = {self._num_rows(size) for size in self._candidates}
        found = rows_per_item(embeddings, self._hidden_size)
        for value in found:
            if len(value) not in possible:
                raise unusable(f"image embeddings have {len(value):,} rows; no picture of this model has as many")
        return [embedded_item("image", value) for value in found]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"{self._runs.markers['image']}\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        encoded = self._runs.expand_text(prompt, items)
        if not prompt.adds_special_tokens or self._bos_id in (None, *encoded.token_ids[:1]):
            return encoded
        return self._runs.expand_ids([self._bos_id, *encoded.token_ids], items)  # the tokenizer does not add it

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _num_rows(self, size: Size) -> int:
        """Lines of cells of the picture and of all its tiles, each with its end, and one row between the two."""
        cols, rows = size[0] // self._side, size[1] // self._side
        return self._cells * (self._cells + 1) + 1 + rows * self._cells * (cols * self._cells + 1)

    def _pad(self, picture: PilImage, size: Size) -> PilImage:
        return ImageOps.pad(picture, size, method=PilImages.Resampling.BICUBIC, color=self._ground)


def _sizes(settings: Settings, value: Any) -> tuple[Size, ...]:
    """Sizes that a picture may be padded to; the first one's width is a tile's side, of which all are multiples."""
    sizes = tuple(tuple(size) for size in value) if isinstance(value, Sequence) else ()
    if not sizes or any(side % sizes[0][0] for size in sizes for side in size):
        raise settings.wrong("candidate_resolutions", value, "sizes in whole tiles")
    return sizes


@processor("DeepseekVLV2ForCausalLM", keys=("language_config", "vision_config", "projector_config"))
def deepseek_vl2(files: ProcessorFiles) -> DeepseekVl2Processor:
    """Each <image> becomes one for each feature."""
    return DeepseekVl2Processor(files)
