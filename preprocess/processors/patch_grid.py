"""Owns the sizes of Pixtral's pictures: whole patches in rows and columns, and a token at the end of each row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from preprocess.media.decoded import Embeddings
from preprocess.media_item import MediaItem
from preprocess.processors.precomputed import embedded_item, extra, rows_by_counts, rows_per_item, unusable

Grid = tuple[int, int]  # rows and columns


@dataclasses.dataclass(frozen=True, slots=True)
class PatchGrid:
    """Pictures that are shrunk into a rectangle, whose sides `rounded` makes whole, and then fitted to whole patches."""

    most_height: int
    most_width: int
    patch_size: int
    rounded: Callable[[float], int] = math.floor

    def of(self, width: int, height: int) -> Grid:
        """The grid of a picture; raises InvalidRequest (MEDIA_UNUSABLE) where nothing of it is left."""
        ratio = max(height / self.most_height, width / self.most_width)
        if ratio > 1:
            rows, columns = self.rounded(height / ratio), self.rounded(width / ratio)
        else:
            rows, columns = height, width
        if not rows or not columns:
            raise unusable(f"a picture of {width:,} x {height:,} pixels is too narrow for this model")
        return -(-rows // self.patch_size), -(-columns // self.patch_size)

    def embedded(self, embeddings: Embeddings, hidden_size: int) -> list[MediaItem]:
        """Items of precomputed rows, one for each patch; with their `image_sizes` (width, height) prompts can be expanded.

        A size is that of the picture, or what became of it. Raises InvalidRequest (MEDIA_UNUSABLE) as in precomputed.py.
        """
        if "image_sizes" not in embeddings.extras:
            return [embedded_item("image", rows) for rows in rows_per_item(embeddings, hidden_size)]
        sizes = [(int(width), int(height)) for width, height in extra(embeddings, "image_sizes", 2)]
        grids = [self.of(*size) for size in sizes]
        rows = rows_by_counts(embeddings, hidden_size, [rows * columns for rows, columns in grids])
        return [embedded_item("image", item, grid) for item, grid in zip(rows, grids, strict=True)]


def row_tokens(item: MediaItem, tokens: Sequence[str]) -> str:
    """The text of a picture whose facts are its grid: `tokens` are a patch's, that between rows, and the last one."""
    if item.facts is None:
        raise unusable(
            "image embeddings of this model come with image_sizes, or else with a prompt of token ids that has their places"
        )
    patch, row_break, end = tokens
    rows, columns = item.facts
    return row_break.join([patch * columns] * rows) + end
