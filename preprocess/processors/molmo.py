"""Pictures of Molmo (Deitke et al., 2024): the whole one and crops that overlap, in front of all text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem, PlacedItem
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, rgb
from preprocess.processors.precomputed import unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings
from preprocess.processors.tokens import token_id

_DROPPED = -100  # where a feature that overlaps another one goes


@dataclasses.dataclass(frozen=True, slots=True)
class Cropping:
    """Crops of `side` pixels; their first `before` and last `after` patches overlap other crops, but at the edges."""

    side: int
    patch: int
    before: int
    after: int
    most: int

    @property
    def margin(self) -> int:
        """Pixels that overlap."""
        return (self.before + self.after) * self.patch

    @property
    def step(self) -> int:
        """Pixels from one crop to the next."""
        return self.side - self.margin

    @property
    def cells(self) -> int:
        """Cells of 2 x 2 patches along a crop's side."""
        return (self.side // self.patch + 1) // 2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of crops for a picture: those that it fills with the least enlarging, or the least shrinking."""
        grids = [(r, c) for r in range(1, self.most + 1) for c in range(1, self.most + 1) if r * c <= self.most]
        grids.sort(key=lambda grid: (grid[0] * grid[1], grid[0]))
        inner = np.array([height - self.margin, width - self.margin], np.float32)
        with np.errstate(divide="ignore"):
            scales = ((np.array(grids) * self.step).astype(np.float32) / inner).min(axis=1)
        if (scales < 1).all():
            return grids[int(scales.argmax())]
        return grids[int(np.where(scales < 1, np.float32(1e10), scales).argmin())]

    def kept(self, count: int) -> np.ndarray:
        """Of `count` crops in a line, for each of their cells (count, cells) the cell of the joined picture, or _DROPPED."""
        result, first = np.full((count, self.cells), _DROPPED), 0
        for index in range(count):
            patches = self.step // self.patch
            patches += self.before if index == 0 else 0
            patches += self.after if index == count - 1 else 0
            begin, number = (0 if index == 0 else self.before // 2), (patches + 1) // 2
            result[index, begin : begin + number] = np.arange(first, first + number)
            first += number
        return result


class MolmoProcessor:
    """Tokens of a picture: a grid for the whole of it and one for its joined crops, each row with a token at its end."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        images, own = image_settings(files), Settings(files.processor, "processor_config.json")
        self._tokenizer = files.tokenizer
        side, (before, after) = images("base_image_input_size", (336, 336)), images("overlap_margins", (4, 4))
        self._crops = Cropping(
            side if isinstance(side, int) else side[0],
            images.integer("image_patch_size", 14),
            before,
            after,
            images.integer("max_crops", 12),
        )
        self._mean = np.array(images("image_mean", CLIP_MEAN), np.float32)[:, None, None]
        self._std = np.array(images("image_std", CLIP_STD), np.float32)[:, None, None]
        self._normalizes = images.flag("do_normalize", True)
        self._begin, self._end, self._patch, self._row_end = (
            token_id(files.tokenizer, name) for name in ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")
        )
        named = files.tokenizer.named_tokens
        self._first_id = token_id(files.tokenizer, named.get("bos_token") or named.get("eos_token", "<|endoftext|>"))
        self._starts_with_space = own.flag("always_start_with_space", False)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (3, H, W) float32 of the joined crops, which begin at crop_starts (n, 2), and whole (3, S, S).

        image_masks (n + 1, patches): how much of a patch is no padding. image_tokens (m): all tokens of the picture.
        image_input_idx: which of them each cell of the whole picture and of the crops belongs to.
        """
        crops, picture = self._crops, np.asarray(rgb(media.pixels))
        rows, cols = crops.grid(*picture.shape[:2])
        joined, seen = self._padded(picture, rows * crops.step + crops.margin, cols * crops.step + crops.margin)
        whole, _ = self._padded(picture, crops.side, crops.side)
        starts = np.array([(row * crops.step, col * crops.step) for row in range(rows) for col in range(cols)])
        token_ids, places = self._tokens(rows, cols)
        tensors = {
            "pixels": joined,
            "whole": whole,
            "crop_starts": starts,
            "image_masks": self._masks(seen, starts),
            "image_tokens": np.array(token_ids),
            "image_input_idx": places,
        }
        return MediaItem("image", tensors, len(token_ids), token_ids)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """None: features are added to embeddings, in an order that depends on the picture."""
        raise unusable("this model takes no precomputed image embeddings")

    def chat_marker(self, modality: str, index: int) -> str:
        return ""

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        text = prompt.text
        if self._starts_with_space and not text.startswith(" "):
            text = f" {text}"
        return self._placed(prompt.encode(text), items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        token_ids = list(token_ids)
        pictures = [token for item in items for token in item.facts]
        end = 1 + len(pictures)
        if token_ids[1:end] == pictures:
            token_ids = token_ids[:1] + token_ids[end:]
        return self._placed(token_ids, items)

    def _placed(self, token_ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """Text behind the pictures, and before them the token that begins every prompt."""
        result, placed = [self._first_id], []
        for item in items:
            placed.append(PlacedItem(item, ((len(result), item.num_features),)))
            result += item.facts
        text = token_ids[1:] if token_ids[:1] == [self._first_id] else token_ids
        return EncodedPrompt(result + text, tuple(placed))

    def _tokens(self, rows: int, cols: int) -> tuple[list[int], np.ndarray]:
        """A picture's tokens, and the place among them of each cell of the whole picture, then of each crop."""
        cells = self._crops.cells
        of_rows, of_cols = self._crops.kept(rows), self._crops.kept(cols)
        height, width = int(of_rows.max()) + 1, int(of_cols.max()) + 1
        token_ids, first = [], 0
        grids = []
        for grid_height, grid_width in ((cells, cells), (height, width)):
            line = [self._patch] * grid_width + [self._row_end]
            first = len(token_ids) + 1
            token_ids += [self._begin, *line * grid_height, self._end]
            grids.append(first + np.arange(grid_height)[:, None] * len(line) + np.arange(grid_width))
        row, col = (
            of_rows[:, None, :, None],
            of_cols[None, :, None, :],
        )  # of crops and cells: (rows, cols, cells, cells)
        kept = (row >= 0) & (col >= 0)
        places = np.where(kept, grids[1][np.maximum(row, 0), np.maximum(col, 0)], _DROPPED)
        return token_ids, np.concatenate([grids[0].ravel(), places.ravel()])

    def _masks(self, seen: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """How much of each patch is picture; the whole one's row is -1 and stands last, though its pixels come first."""
        side, patch = self._crops.side, self._crops.patch
        count = side // patch
        masks = [
            seen[top : top + side, left : left + side].reshape(count, patch, count, patch).mean((1, 3), np.float32)
            for top, left in starts
        ]
        return np.stack([*masks, np.full((count, count), -1, np.float32)]).reshape(len(masks) + 1, -1)

    def _padded(self, picture: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """picture (h, w, 3) uint8 -> (3, height, width) float32 with black around it, and where it is (height, width)."""
        given = np.array(picture.shape[:2], np.float32)
        scale = (np.array([height, width], np.float32) / given).min()
        tall, wide = (int(length * scale) for length in given)
        if not tall or not wide:
            raise unusable(f"a picture of {picture.shape[1]} x {picture.shape[0]} is too narrow for {width} x {height}")
        top, left = (height - tall) // 2, (width - wide) // 2
        result, seen = np.zeros((3, height, width), np.float32), np.zeros((height, width), np.bool_)
        for channel, values in enumerate(picture.transpose(2, 0, 1)):
            # Floats are resized as floats, as torch does it in the reference; its results differ by 2e-5 or less.
            floats = PilImages.fromarray(values.astype(np.float32) / np.float32(255))
            resized = np.asarray(floats.resize((wide, tall), PilImages.Resampling.BILINEAR))
            result[channel, top : top + tall, left : left + wide] = resized.clip(0, 1)
        seen[top : top + tall, left : left + wide] = True
        return ((result - self._mean) / self._std if self._normalizes else result), seen


@processor("MolmoForCausalLM")
def molmo(files: ProcessorFiles) -> MolmoProcessor:
    """Pictures stand in front of the text, which has no markers."""
    return MolmoProcessor(files)
