"""Owns how InternVL and its kin cut a picture into tiles of one size: as many as come nearest to its aspect ratio."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image as PilImages
from PIL.Image import Image as PilImage

Grid = tuple[int, int]  # columns, rows


def grids(fewest: int, most: int) -> list[Grid]:
    """All grids with so many tiles, those with fewer tiles first."""
    found = {
        (cols, rows)
        for n in range(fewest, most + 1)
        for cols in range(1, n + 1)
        for rows in range(1, n + 1)
        if fewest <= cols * rows <= most
    }
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def nearest_grid(size: tuple[int, int], candidates: Iterable[Grid], side: int) -> Grid:
    """The grid whose aspect ratio is nearest to that of a picture of `size`; (1, 1) without candidates.

    Of several that are as near, a later one wins if the picture has more than half its pixels.
    """
    width, height = size
    best, best_difference = (1, 1), float("inf")
    for cols, rows in candidates:
        difference = abs(width / height - cols / rows)
        large = width * height > 0.5 * side * side * cols * rows
        if difference < best_difference or (difference == best_difference and large):
            best, best_difference = (cols, rows), difference
    return best


def cut(picture: PilImage, grid: Grid, side: int) -> list[PilImage]:
    """The picture stretched over the grid and cut into its tiles, row by row."""
    cols, rows = grid
    stretched = stretch(picture, (side * cols, side * rows))
    corners = [(col * side, row * side) for row in range(rows) for col in range(cols)]
    return [stretched.crop((left, top, left + side, top + side)) for left, top in corners]


def stretch(picture: PilImage, size: tuple[int, int]) -> PilImage:
    """The picture in another size."""
    return picture.resize(size, PilImages.Resampling.BICUBIC)
