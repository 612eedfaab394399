"""Pictures of MiniCPM-V (Yao et al., 2024): the whole one made small, and of a large one the slices of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.pixels import channels_first, normalization, rgb
from preprocess.processors.precomputed import embedded_item, extra, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.tokens import token_id

_MARKER = "(<image>./</image>)"
Size = tuple[int, int]  # width, height
Grid = tuple[int, int]  # columns, rows


class Slicing:
    """How a picture becomes slices of about `side`^2 pixels, whose sides are multiples of `patch`."""

    def __init__(self, side: int, patch: int, most: int) -> None:
        self.side, self.patch, self.most = side, patch, most

    def grid(self, size: Size) -> Grid | None:
        """The grid with about as many cells as the picture has slices' worth of pixels, nearest to its aspect ratio.

        None where one slice is enough.
        """
        width, height = size
        wanted = min(math.ceil(width * height / (self.side * self.side)), self.most)
        if wanted <= 1:
            return None
        counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= self.most]
        grids = [(cols, count // cols) for count in counts for cols in range(1, count + 1) if count % cols == 0]
        ratio = math.log(width / height)
        return min(grids, key=lambda grid: abs(ratio - math.log(grid[0] / grid[1])), default=(1, 1))

    def slices(self, picture: PilImage) -> tuple[PilImage, list[PilImage]]:
        """The whole picture as one slice, and the cells of its grid, row by row."""
        grid = self.grid(picture.size)
        if grid is None:
            return _resize(picture, self._fitting(*picture.size, enlarge=True)), []
        whole = _resize(picture, self._fitting(*picture.size, enlarge=False))
        cols, rows = grid
        cell = (self._multiple(picture.width, cols) / cols, self._multiple(picture.height, rows) / rows)
        width, height = self._fitting(*cell, enlarge=True)
        fine = _resize(picture, (width * cols, height * rows))
        corners = [(col * width, row * height) for row in range(rows) for col in range(cols)]
        return whole, [fine.crop((left, top, left + width, top + height)) for left, top in corners]

    def _fitting(self, width: float, height: float, *, enlarge: bool) -> Size:
        if enlarge or width * height > self.side * self.side:
            ratio = width / height
            height = int(self.side / math.sqrt(ratio))
            width = int(height * ratio)
        return self._multiple(width, self.patch), self._multiple(height, self.patch)

    @staticmethod
    def _multiple(length: float, step: int) -> int:
        return max(round(length / step) * step, step)


def _resize(picture: PilImage, size: Size) -> PilImage:
    return picture.resize(size, PilImages.Resampling.BICUBIC)


class MiniCpmVProcessor:
    """Slices of a picture as one item; the text around their features shows the grid."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, images = model_settings(files), image_settings(files)
        self._hidden_size = config.integer("hidden_size")
        self._rows_per_slice = images.integer("image_feature_size", config.integer("query_num", 64))
        self._sliced = images.flag("slice_mode", config.flag("slice_mode", True))
        in_config = config.section("slice_config")
        most = in_config.integer("max_slice_nums", config.integer("max_slice_nums", 9))
        self._slicing = Slicing(
            images.integer("scale_resolution", config.integer("scale_resolution", 448)),
            images.integer("patch_size", config.integer("patch_size", 14)),
            images.integer("max_slice_nums", most) if self._sliced else 1,
        )
        self._tags = {name: images(name, default) for name, default in _TAGS.items()}
        self._plain_slices = _has_plain_slices(images, config)
        self._numbered = self._plain_slices and images.flag("use_image_id", False)
        unknown = token_id(files.tokenizer, self._tags["unk"])
        self._runs = TokenRuns(files.tokenizer, {"image": unknown}, self._text, markers={"image": _MARKER})
        self._normalization = normalization(1 / 255, images("norm_mean", (0.5,) * 3), images("norm_std", (0.5,) * 3))

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (3, H, W) uint8 of the whole picture; slices (n, 3, H', W') uint8 where there is a grid."""
        picture = rgb(media.pixels)
        whole, cells = self._slicing.slices(picture)
        tensors = {"pixels": channels_first(whole), "normalization": self._normalization}
        if cells:
            tensors["slices"] = np.stack([channels_first(cell) for cell in cells])
        return MediaItem("image", tensors, self._num_rows(len(cells)), self._slicing.grid(picture.size))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (slices * rows per slice, D); the pictures' sizes tell their grids."""
        rows = rows_per_item(embeddings, self._hidden_size)
        sizes = extra(embeddings, "image_sizes", 2).tolist()
        if len(sizes) != len(rows):
            raise unusable(f"image_sizes has {len(sizes)} sizes; there are {len(rows)} image embeddings")
        items = []
        for value, (width, height) in zip(rows, sizes, strict=True):
            grid = self._slicing.grid((width, height))
            wanted = self._num_rows(math.prod(grid or (0,)))
            if len(value) != wanted:
                raise unusable(
                    f"image embeddings have {len(value):,} rows; a picture of {width} x {height} has {wanted:,}"
                )
            items.append(embedded_item("image", value, grid))
        return items

    def chat_marker(self, modality: str, index: int) -> str:
        return f"{_MARKER}\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)

    def _num_rows(self, num_cells: int) -> int:
        return (1 + num_cells) * self._rows_per_slice

    def _text(self, item: MediaItem, index: int) -> str:
        """The whole picture between its tags, with its number where the model has one, then the grid's rows as lines."""
        tags, features = self._tags, self._tags["unk"] * self._rows_per_slice
        whole = f"{tags['im_start']}{features}{tags['im_end']}"
        number = f"{tags['im_id_start']}{index}{tags['im_id_end']}" if self._numbered else ""
        if item.facts is None:
            return number + whole
        cols, rows = item.facts
        if self._plain_slices:
            cell = f"{tags['slice_start']}{features}{tags['slice_end']}"
            return number + whole + "\n".join([cell * cols] * rows)
        return whole + tags["slice_start"] + "\n".join([whole * cols] * rows) + tags["slice_end"]


_TAGS = {
    "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>", "slice_end": "</slice>", "unk": "<unk>",
    "im_id_start": "<image_id>", "im_id_end": "</image_id>",
}  # fmt: skip


def _has_plain_slices(images: Settings, config: Settings) -> bool:
    """Whether each slice has tags of its own, as from version 2.6 on; before, tags surround all of them."""
    version: Any = images("version", config("version", None))
    try:
        return version is not None and float(version) >= 2.6
    except (TypeError, ValueError):
        raise images.wrong("version", version, "a number") from None


@processor("MiniCPMV")
def minicpmv(files: ProcessorFiles) -> MiniCpmVProcessor:
    """Markers become the tags and tokens of a picture's slices."""
    return MiniCpmVProcessor(files)
