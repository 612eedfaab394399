"""Pictures of Phi-3-vision (Abdin et al., 2024): enlarged to whole crops; the text between them is encoded piece by piece."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from PIL import Image as PilImages
from PIL.Image import Image as PilImage

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import DecodedMedia, Embeddings
from preprocess.media_item import EncodedPrompt, MediaItem, PlacedItem
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, read_normalization, rgb
from preprocess.processors.placeholders import is_expanded, place
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import image_settings, model_settings

_SIDE = 336
_ROWS_OF_CROP, _SIDE_ROWS = 144, 12  # of 24 x 24 patches, four in a row
_IMAGE_TOKEN, _IMAGE_ID = "<|image|>", 32044


def whole_crops(picture: PilImage, most: int) -> PilImage:
    """The picture enlarged to as many crops as it may have, its longer side a multiple of theirs and white around the other."""
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(PilImages.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    count = max(n for n in range(1, most + 1) if n == 1 or n * math.ceil(n / ratio) <= most)
    width = count * _SIDE
    height = int(width / ratio)
    if not height:
        raise unusable(
            f"a picture of {picture.width} x {picture.height} is too narrow: {width} x 0 would be left of it"
        )
    padded = PilImages.new("RGB", (width, math.ceil(height / _SIDE) * _SIDE), (255, 255, 255))
    resized = picture.resize((width, height), PilImages.Resampling.BILINEAR)
    padded.paste(resized, (0, (padded.height - height) // 2))
    return padded.transpose(PilImages.Transpose.TRANSPOSE) if tall else padded


def num_rows(rows: int, cols: int) -> int:
    """Features of a picture of rows x cols crops: theirs and those of the whole, one behind each line, one between."""
    return (rows * cols + 1) * _ROWS_OF_CROP + (rows + 1) * _SIDE_ROWS + 1


class Phi3VProcessor:
    """Numbered markers, <|image_1|> being the first picture's wherever it stands."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        images = image_settings(files)
        self._tokenizer, self._most = files.tokenizer, images.integer("num_crops", 1)
        self._hidden_size = model_settings(files).integer("hidden_size")
        found = files.tokenizer.backend.token_to_id(_IMAGE_TOKEN)
        self._image_id = _IMAGE_ID if found is None else found
        self._begin = files.tokenizer.encode("", add_special_tokens=True)
        self._normalization = read_normalization(images.data, CLIP_MEAN, CLIP_STD)

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """pixels (3, H, W) uint8 of whole crops."""
        pixels = channels_first(whole_crops(rgb(media.pixels), self._most))
        rows, cols = pixels.shape[1] // _SIDE, pixels.shape[2] // _SIDE
        tensors = {"pixels": pixels, "normalization": self._normalization}
        return MediaItem("image", tensors, num_rows(rows, cols))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        """Items of (rows, D) of a picture that could be."""
        found = rows_per_item(embeddings, self._hidden_size)
        sides = range(1, self._most + 1)
        possible = {num_rows(rows, cols) for rows in sides for cols in sides if rows * cols <= self._most}
        for value in found:
            if len(value) not in possible:
                raise unusable(
                    f"image embeddings have {len(value):,} rows; no picture of up to {self._most} crops has as many"
                )
        return [embedded_item("image", value) for value in found]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"<|image_{index + 1}|>\n"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        numbers = {prompt.write(f"<|image_{number}|>"): number for number in range(1, len(items) + 2)}
        pattern = "|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
        parts = re.split(f"({pattern})", prompt.text)
        special = True if items else None  # each piece of text begins with <s>, be it empty
        pieces = [prompt.encode(text, add_special_tokens=special) for text in parts[::2]]
        return self._joined(pieces, [numbers[marker] for marker in parts[1::2]], items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        token_ids, features = list(token_ids), {"image": {self._image_id}}
        if is_expanded(token_ids, items, features):
            return EncodedPrompt(token_ids, place(token_ids, items, features))
        markers = {
            tuple(self._tokenizer.encode(f"<|image_{number}|>", add_special_tokens=False)): number
            for number in range(1, len(items) + 2)
        }
        pieces, found, position = [[]], [], 0
        while position < len(token_ids):
            marker = next((ids for ids in markers if tuple(token_ids[position : position + len(ids)]) == ids), None)
            if marker is None:
                pieces[-1].append(token_ids[position])
            else:
                found.append(markers[marker])
                pieces.append(list(self._begin))
            position += len(marker or (0,))
        return self._joined(pieces, found, items)

    def _joined(self, pieces: list[list[int]], numbers: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """Pieces of text with the pictures of these numbers between them."""
        if set(numbers) != set(range(1, len(items) + 1)):
            found = ", ".join(f"<|image_{number}|>" for number in numbers) or "no <|image_1|>"
            problem = f"the prompt has {found}, and {len(items)} image items are given"
            raise InvalidRequest(problem, ErrorReason.ERROR_REASON_MEDIA_COUNT)
        token_ids, placed = list(pieces[0]), []
        for number, piece in zip(numbers, pieces[1:], strict=True):
            item = items[number - 1]
            placed.append(PlacedItem(item, ((len(token_ids), item.num_features),)))
            token_ids += [self._image_id] * item.num_features + piece
        return EncodedPrompt(token_ids, tuple(placed))


@processor("Phi3VForCausalLM")
def phi3v(files: ProcessorFiles) -> Phi3VProcessor:
    """Markers become a token for each feature of the picture that they number."""
    return Phi3VProcessor(files)
