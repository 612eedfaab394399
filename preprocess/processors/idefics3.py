"""Idefics3 (Laurençon et al., 2024): a picture in square tiles, and the whole of it once more in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import HALF, read_resample
from preprocess.processors.pixels import channels_first, read_normalization, rgb
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import image_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import media_token_id, text_hidden_size

_LONGEST_EDGE = 4096  # of any picture
_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"


class Idefics3Processor:
    """An item's `facts` are the rows and columns of its tiles, (0, 0) where the whole picture is one."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        vision = config.section("vision_config")
        self._hidden_size = text_hidden_size(config)
        self._tile = settings.section("max_image_size").integer("longest_edge", 364)
        self._splits = settings.flag("do_image_splitting", True)
        self._size = settings.section("size") if settings.flag("do_resize", True) else None
        self._resample = read_resample(settings, PilImages.Resampling.LANCZOS)
        self._normalization = read_normalization(settings.data, HALF, HALF)
        cells = self._tile // vision.integer("patch_size", 32) // config.integer("scale_factor", 2)
        self._rows_per_tile = cells**2
        self._runs = TokenRuns(files.tokenizer, {"image": media_token_id(config, "image", 128257)}, self._expansion)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        if not isinstance(media, Image):
            raise unusable(f"this model takes no {media.modality} items")
        tiles, grid = self._tiles(self._resized(rgb(media.pixels)))
        pixels = np.stack([channels_first(tile) for tile in tiles])
        tensors = {"pixels": pixels, "normalization": self._normalization}
        return MediaItem("image", tensors, len(tiles) * self._rows_per_tile, grid)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Rows of pictures that were not split: those of others do not tell how many rows and columns of tiles they are."""
        if embeddings.modality != "image":
            raise unusable(f"this model takes no {embeddings.modality} items")
        rows = rows_per_item(embeddings, self._hidden_size)
        for of_item in rows:
            if len(of_item) != self._rows_per_tile:
                raise unusable(
                    f"image embeddings have {len(of_item):,} rows; a picture in one tile has {self._rows_per_tile:,}"
                )
        return [embedded_item("image", of_item, (0, 0)) for of_item in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return self._runs.markers["image"]

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _resized(self, image: PilImage) -> PilImage:
        """The picture with its longer side as long as tiles may take."""
        if self._size is None:
            return image
        if "longest_edge" in self._size.data or not self._size.data:
            width, height = _longest_to(image.size, self._size.integer("longest_edge", 4 * 364))
        else:
            width, height = self._size.integer("width"), self._size.integer("height")
        return image.resize((width, height), self._resample)

    def _tiles(self, image: PilImage) -> tuple[list[PilImage], tuple[int, int]]:
        """Tiles row by row, the whole picture last, with the rows and columns of those before it."""
        tile = self._tile
        if not self._splits:
            return [image.resize((tile, tile), self._resample)], (0, 0)
        image = image.resize(_whole_tiles(image.size, tile), self._resample)
        columns, rows = image.width // tile, image.height // tile
        if (columns, rows) == (1, 1):
            return [image], (0, 0)
        corners = [(x * tile, y * tile) for y in range(rows) for x in range(columns)]
        tiles = [image.crop((x, y, x + tile, y + tile)) for x, y in corners]
        return [*tiles, image.resize((tile, tile), self._resample)], (rows, columns)

    def _expansion(self, item: MediaItem, index: int) -> str:
        run = self._runs.markers["image"] * self._rows_per_tile
        rows, columns = item.facts
        lines = [
            "".join(f"{_FAKE}<row_{row}_col_{column}>{run}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join(lines) + ("\n" if rows else "") + f"{_FAKE}{_GLOBAL}{run}{_FAKE}"


def _longest_to(size: tuple[int, int], length: int) -> tuple[int, int]:
    """(width, height) with the longer one made `length`, the other even; then both small enough for any encoder."""
    width, height = size
    ratio = width / height
    if width >= height:
        width, height = length, int(length / ratio)
        height += height % 2
    else:
        width, height = int(length * ratio), length
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > _LONGEST_EDGE:
        width, height = _LONGEST_EDGE, int(_LONGEST_EDGE / ratio)
    elif height > width and height > _LONGEST_EDGE:
        width, height = int(_LONGEST_EDGE * ratio), _LONGEST_EDGE
    return max(width, 1), max(height, 1)


def _whole_tiles(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """(width, height) in whole tiles: the longer side rounded up, the other made to fit it and rounded up."""
    width, height = size
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return width, math.ceil(max(int(width / ratio), 1) / tile) * tile
    height = math.ceil(height / tile) * tile
    return math.ceil(max(int(height * ratio), 1) / tile) * tile, height


@processor("Idefics3ForConditionalGeneration")
def idefics3(files: ProcessorFiles) -> Idefics3Processor:
    return Idefics3Processor(files)
