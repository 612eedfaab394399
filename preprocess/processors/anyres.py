"""Owns the tiles of LLaVA-NeXT (Liu et al., 2024): which resolution suits a picture, and which patches of it are kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

Resolution = tuple[int, int]  # height and width


@dataclasses.dataclass(frozen=True, slots=True)
class TileLayout:
    """Tiles of a picture in rows and columns, and the patches of all of them that are not padding.

    `rows` and `columns` is the grid that becomes of the kept patches: smaller where a model has a limit.
    """

    tile_rows: int
    tile_columns: int
    top: int  # of the kept patches, in patches
    left: int
    bottom: int  # behind the last one
    right: int
    rows: int
    columns: int

    @property
    def num_rows(self) -> int:
        """Features of the grid: those of the patches, and one at the end of each row."""
        return self.rows * (self.columns + 1)

    def as_tensor(self) -> np.ndarray:
        """(8,) int64, in the order of the fields."""
        return np.array(dataclasses.astuple(self), np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class AnyRes:
    """Pictures of any resolution in tiles of one size, each with `side` x `side` patches."""

    resolutions: tuple[Resolution, ...]
    tile_size: int
    side: int
    max_tiles: int | None = None  # the grid of patches is resized to about as many tiles' where it is much larger

    def best(self, width: int, height: int) -> Resolution:
        """The resolution in which most pixels of a picture are seen, and of those the one that wastes least."""

        def merit(resolution: Resolution) -> tuple[int, int]:
            tall, wide = resolution
            scale = min(wide / width, tall / height)
            seen = min(int(width * scale) * int(height * scale), width * height)
            return seen, seen - tall * wide

        return max(self.resolutions, key=merit)

    def tiles(self, image: PilImage, resample: int) -> list[PilImage]:
        """The whole picture squeezed to one tile, then the tiles of it, row by row, black where it does not reach."""
        tall, wide = self.best(*image.size)
        size = _fitted(image.size, tall, wide)
        ground = PilImages.new("RGB", (wide, tall))
        ground.paste(image.resize(size, resample), ((wide - size[0]) // 2, (tall - size[1]) // 2))
        step = self.tile_size
        corners = [(left, top) for top in range(0, tall, step) for left in range(0, wide, step)]
        cut = [ground.crop((left, top, left + step, top + step)) for left, top in corners]
        return [image.resize((step, step), resample), *cut]

    def layout(self, width: int, height: int) -> TileLayout:
        """What becomes of the patches of a picture of this size."""
        tall, wide = self.best(width, height)
        tile_rows, tile_columns = tall // self.tile_size, wide // self.tile_size
        rows, columns = tile_rows * self.side, tile_columns * self.side
        top = left = 0
        # Rounding to 7 places is that of the models' own code, which has to agree with itself on the number of tokens.
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (rows / height), 7))) // 2
        kept_rows, kept_columns = rows - 2 * top, columns - 2 * left
        smaller = self._limited(kept_rows, kept_columns)
        return TileLayout(tile_rows, tile_columns, top, left, rows - top, columns - left, *smaller)

    def _limited(self, rows: int, columns: int) -> Resolution:
        if self.max_tiles is None:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def read_resolutions(value: Sequence[Sequence[int]]) -> tuple[Resolution, ...]:
    """The `image_grid_pinpoints` of a config."""
    return tuple((height, width) for height, width in value)


def _fitted(size: tuple[int, int], tall: int, wide: int) -> tuple[int, int]:
    """(width, height) of a picture that is to touch two sides of a rectangle."""
    width, height = size
    by_width, by_height = wide / width, tall / height
    if by_width < by_height:
        return wide, min(math.ceil(height * by_width), tall)
    return min(math.ceil(width * by_height), wide), tall
