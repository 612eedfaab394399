"""Pictures of InternVL (Chen et al., 2024), H2OVL (Galib et al., 2024) and NVLM-D (Dai et al., 2024): tiles and a thumbnail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.pixels import IMAGENET_MEAN, IMAGENET_STD, channels_first, normalization, rgb
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import model_settings
from preprocess.processors.tiles import cut, grids, nearest_grid, stretch
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.tokens import token_id

_MARKER = "<image>"


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture becomes tiles of `side` pixels; the thumbnail is the whole picture, behind more than one tile."""

    side: int
    fewest: int
    most: int
    thumbnail: bool

    def tiles(self, picture: PilImage, num_items: int) -> list[PilImage]:
        """The tiles of a picture, whatever else is in its prompt."""
        found = cut(picture, nearest_grid(picture.size, grids(self.fewest, self.most), self.side), self.side)
        return [*found, stretch(picture, (self.side, self.side))] if self.thumbnail and len(found) > 1 else found


@dataclasses.dataclass(frozen=True, slots=True)
class TwiceTiled:
    """Multi-scale adaptive cropping (Mini-Monkey: Huang et al., 2024): tiles of two grids, and the thumbnail at the end.

    The second grid has three tiles or more, and neither as many columns nor as many rows as divide the first one's.
    Pictures in company have one grid.
    """

    once: Tiling

    def tiles(self, picture: PilImage, num_items: int) -> list[PilImage]:
        """The second grid's tiles, the first one's if it has more than one, the thumbnail."""
        if num_items > 1:
            return self.once.tiles(picture, num_items)
        side, most = self.once.side, self.once.most
        first = nearest_grid(picture.size, grids(1, most), side)
        others = [grid for grid in grids(3, most) if first[0] % grid[0] and first[1] % grid[1]]
        second = nearest_grid(picture.size, others, side)
        parts = [cut(picture, grid, side) if grid != (1, 1) else [] for grid in (second, first)]
        return [*parts[0], *parts[1], stretch(picture, (side, side))]


def _in_one_piece(num_tiles: int, rows_per_tile: int) -> str:
    return f"<img>{'<IMG_CONTEXT>' * (num_tiles * rows_per_tile)}</img>"


def _tagged(thumbnail: bool) -> Callable[[int, int], str]:
    """Each tile behind a tag that counts it, the thumbnail, which even a single tile is, behind its own."""

    def text(num_tiles: int, rows_per_tile: int) -> str:
        tags = [f"<tile_{number}>" for number in range(1, num_tiles + 1)]
        if thumbnail:
            tags[-1] = "<tile_global_thumbnail>"
        return f"<Image>{''.join(tag + '<|vision_pad|>' * rows_per_tile for tag in tags)}</Image>"

    return text


class InternVlProcessor:
    """Tiles of a picture as one item; its features stand in a text that `replacement(tiles, rows per tile)` writes."""

    modalities = ("image",)
    sample_rate = None

    def __init__(
        self,
        files: ProcessorFiles,
        tiling: Tiling | TwiceTiled,
        rows_per_tile: int,
        hidden_size: int,
        replacement: Callable[[int, int], str],
        feature_token: str,
    ) -> None:
        self._tiling, self._rows_per_tile, self._hidden_size = tiling, rows_per_tile, hidden_size
        self._runs = TokenRuns(
            files.tokenizer,
            {"image": token_id(files.tokenizer, feature_token)},
            lambda item, _: replacement(item.num_features // rows_per_tile, rows_per_tile),
            markers={"image": _MARKER},
        )
        self._normalization = normalization(1 / 255, IMAGENET_MEAN, IMAGENET_STD)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (tiles, 3, side, side) uint8."""
        tiles = self._tiling.tiles(rgb(media.pixels), num_items)
        pixels = np.stack([channels_first(tile) for tile in tiles])
        tensors = {"pixels": pixels, "normalization": self._normalization}
        return MediaItem("image", tensors, len(tiles) * self._rows_per_tile)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (tiles * rows per tile, D)."""
        rows = rows_per_item(embeddings, self._hidden_size)
        for value in rows:
            if len(value) % self._rows_per_tile:
                raise unusable(
                    f"image embeddings have {len(value):,} rows; they must be whole tiles of {self._rows_per_tile:,}"
                )
        return [embedded_item("image", value) for value in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"{_MARKER}\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)


@processor("InternVLChatModel")
def internvl(files: ProcessorFiles) -> InternVlProcessor:
    """Markers become <img>, a token for each feature, </img>."""
    tiling, rows = _read(files)
    return InternVlProcessor(files, tiling, rows, _hidden_size(files, "llm_config"), _in_one_piece, "<IMG_CONTEXT>")


@processor("H2OVLChatModel")
def h2ovl(files: ProcessorFiles) -> InternVlProcessor:
    """The same, with two grids of tiles where config.json says use_msac."""
    tiling, rows = _read(files)
    twice = model_settings(files).flag("use_msac", False) and tiling.most > 1
    chosen = TwiceTiled(tiling) if twice else tiling
    return InternVlProcessor(files, chosen, rows, _hidden_size(files, "llm_config"), _in_one_piece, "<IMG_CONTEXT>")


@processor("NVLM_D_Model")
def nvlm(files: ProcessorFiles) -> InternVlProcessor:
    """The tokens of each tile stand behind a tag."""
    tiling, rows = _read(files)
    section = "text_config" if files.config.get("text_config") else "llm_config"
    text = _tagged(tiling.thumbnail)
    return InternVlProcessor(files, tiling, rows, _hidden_size(files, section), text, "<|vision_pad|>")


def _read(files: ProcessorFiles) -> tuple[Tiling, int]:
    """The tiling of a config.json, and how many features a tile has."""
    config = model_settings(files)
    vision = config.section("vision_config")
    side = config.integer("force_image_size", vision.integer("image_size", 224))
    ratio = config("downsample_ratio", 0.5)
    rows = int((side // vision.integer("patch_size", 14)) ** 2 * ratio**2)
    dynamic = config.flag("dynamic_image_size", False)
    fewest, most = (
        (config.integer("min_dynamic_patch", 1), config.integer("max_dynamic_patch", 6)) if dynamic else (1, 1)
    )
    return Tiling(side, fewest, most, config.flag("use_thumbnail", False)), rows


def _hidden_size(files: ProcessorFiles, section: str) -> int:
    return model_settings(files).section(section).integer("hidden_size")
