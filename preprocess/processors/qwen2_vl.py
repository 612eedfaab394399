"""Qwen2-VL (Wang et al., 2024): pictures and videos at their own size, in whole cells of merged patches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings, Image, Video
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors import fixed_point
from preprocess.processors.mrope import Grid, mrope_positions
from preprocess.processors.picture_recipe import read_resample
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, read_normalization, rgb
from preprocess.processors.precomputed import embedded_item, extra, rows_by_counts, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings, video_settings
from preprocess.processors.token_runs import TokenRuns

_PADS = {"image": 151655, "video": 151656}  # the tokens that stand for items, where config.json does not say
_MAX_RATIO = 200  # of a picture's longer side to its shorter one


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """How pictures of one kind are sized: by the settings of pictures or of videos."""

    min_pixels: int
    max_pixels: int
    resizes: bool
    resample: int
    normalization: np.ndarray
    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @property
    def cell(self) -> int:
        """Pixels along a side of what becomes one token."""
        return self.patch_size * self.merge_size

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole cells, near the original ratio, within the least and most pixels."""
        if max(width, height) > _MAX_RATIO * min(width, height):
            raise unusable(
                f"a picture of {width:,} x {height:,} is too narrow: the model takes ratios up to {_MAX_RATIO}"
            )
        if not self.resizes:
            if width % self.cell or height % self.cell:
                raise unusable(
                    f"a picture of {width:,} x {height:,} is no multiple of {self.cell}, and resizing is off"
                )
            return width, height
        sides = (width, height)
        rounded = tuple(round(side / self.cell) * self.cell for side in sides)
        if math.prod(rounded) > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            rounded = tuple(max(self.cell, math.floor(side / shrink / self.cell) * self.cell) for side in sides)
        elif math.prod(rounded) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            rounded = tuple(math.ceil(side * grow / self.cell) * self.cell for side in sides)
        return rounded[0], rounded[1]

    def item(self, modality: str, frames: Sequence[PilImage]) -> MediaItem:
        """The item of RGB frames of one size; the tower cuts them into patches, and repeats a last one that has no pair."""
        width, height = self.size(*frames[0].size)
        if modality == "video":
            sized = [
                fixed_point.resized(np.asarray(f), width, height, self.resample).transpose(2, 0, 1) for f in frames
            ]
        else:
            sized = [
                channels_first(f if f.size == (width, height) else f.resize((width, height), self.resample))
                for f in frames
            ]
        grid = (math.ceil(len(frames) / self.temporal_patch_size), height // self.cell, width // self.cell)
        tensors = {"pixels": np.stack(sized), "normalization": self.normalization}
        return MediaItem(modality, tensors, math.prod(grid), grid)


def _read_frames(settings: Settings, min_pixels: int, max_pixels: int) -> _Frames:
    size = settings.section("size")
    return _Frames(
        min_pixels=settings.integer(
            "min_pixels", size.integer("shortest_edge", size.integer("min_pixels", min_pixels))
        ),
        max_pixels=settings.integer("max_pixels", size.integer("longest_edge", size.integer("max_pixels", max_pixels))),
        resizes=settings.flag("do_resize", True),
        resample=read_resample(settings),
        normalization=read_normalization(settings.data, CLIP_MEAN, CLIP_STD),
        patch_size=settings.integer("patch_size", 14),
        merge_size=settings.integer("merge_size", 2),
        temporal_patch_size=settings.integer("temporal_patch_size", 2),
    )


class Qwen2VLProcessor:
    """Items become runs of a pad token, one for each cell of the grid (time, height, width), which is their `facts`."""

    modalities = ("image", "video")
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config = model_settings(files)
        text = config.section("text_config")
        self._hidden_size = (text if text.data else config).integer("hidden_size")
        ids = {kind: config.integer(f"{kind}_token_id", default, least=0) for kind, default in _PADS.items()}
        self._runs = TokenRuns(files.tokenizer, ids)
        self._frames = {
            "image": _read_frames(image_settings(files), 56 * 56, 28 * 28 * 1280),
            "video": _read_frames(video_settings(files), 128 * 28 * 28, 28 * 28 * 768),
        }

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        match media:
            case Image():
                return self._frames["image"].item("image", [rgb(media.pixels)])
            case Video():
                return self._frames["video"].item("video", [PilImages.fromarray(frame) for frame in media.frames])
        raise unusable(f"this model takes no {media.modality} items")

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if embeddings.modality not in self.modalities:
            raise unusable(f"this model takes no {embeddings.modality} items")
        patches = extra(embeddings, f"{embeddings.modality}_grid_thw", 3)
        merge_size = self._frames[embeddings.modality].merge_size
        if (patches[:, 1:] % merge_size).any():
            raise unusable(
                f"{embeddings.modality}_grid_thw counts patches: height and width are multiples of {merge_size}"
            )
        grids: list[Grid] = [(t, h // merge_size, w // merge_size) for t, h, w in patches.tolist()]
        rows = rows_by_counts(embeddings, self._hidden_size, [math.prod(grid) for grid in grids])
        return [embedded_item(embeddings.modality, part, grid) for part, grid in zip(rows, grids, strict=True)]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"<|vision_start|>{self._runs.markers[modality]}<|vision_end|>"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return _with_positions(self._runs.expand_text(prompt, items))

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return _with_positions(self._runs.expand_ids(token_ids, items))


def _with_positions(encoded: EncodedPrompt) -> EncodedPrompt:
    """A prompt with media has positions in three axes."""
    if not encoded.media:
        return encoded
    if scattered := next((placed.item for placed in encoded.media if len(placed.spans) > 1), None):
        raise unusable(f"the tokens of {scattered.modality} items have to lie together, without text between them")
    grids = [placed.item.facts for placed in encoded.media]
    return dataclasses.replace(encoded, positions=mrope_positions(len(encoded.token_ids), encoded.media, grids))


@processor("Qwen2VLForConditionalGeneration")
def qwen2_vl(files: ProcessorFiles) -> Qwen2VLProcessor:
    return Qwen2VLProcessor(files)
