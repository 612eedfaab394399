"""Owns the prompts and pictures of Llama 3.2 Vision: tiles of one size, of which cross attention reads, and one token each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import HALF, read_resample, read_size
from preprocess.processors.pixels import channels_first, read_normalization, rgb
from preprocess.processors.placeholders import place
from preprocess.processors.precomputed import unusable
from preprocess.processors.processor import Processor, ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import image_settings, model_settings
from preprocess.processors.tokens import token_text

_SIDE, _MAX_TILES, _IMAGE_ID = 224, 4, 128256
_BILINEAR = int(PilImages.Resampling.BILINEAR)


@processor("MllamaForConditionalGeneration")
def mllama(files: ProcessorFiles) -> Processor:
    return MllamaProcessor(files)


class MllamaProcessor:
    """A picture stands at one token, which takes no feature: `num_features` is 1, whatever the tower makes of it."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        for name in ("do_resize", "do_pad"):
            if not settings.flag(name, True):
                raise settings.wrong(name, False, "true")
        size = read_size(settings, "size", (_SIDE, _SIDE))
        if not isinstance(size, tuple) or size[0] != size[1]:
            raise settings.wrong("size", settings("size", None), "an object with an equal height and width")
        self._side, self._resample = size[0], read_resample(settings, _BILINEAR)
        max_tiles = settings.integer("max_image_tiles", _MAX_TILES)
        vision = config.section("vision_config")
        if max_tiles != (taken := vision.integer("max_num_tiles", _MAX_TILES)):
            raise settings.wrong("max_image_tiles", max_tiles, f"{taken}, as max_num_tiles of config.json is")
        if self._side != (taken := vision.integer("image_size", 448)):
            raise settings.wrong("size", self._side, f"{taken}, as image_size of config.json is")
        self._arrangements = arrangements(max_tiles)
        self._normalization = read_normalization(settings.data, HALF, HALF)
        self._image_id = config.integer("image_token_index", config.data.get("image_token_id", _IMAGE_ID), least=0)
        self._image = token_text(files.tokenizer, self._image_id, "an image")
        self._bos = files.tokenizer.named_tokens.get("bos_token", "")

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        assert isinstance(media, Image)
        image, side = rgb(media.pixels), self._side
        rows, columns = canvas(image.height, image.width, self._arrangements, side)
        height, width = fitted(image.height, image.width, rows * side, columns * side, side)
        pixels = channels_first(image.resize((width, height), self._resample))
        pixels = np.pad(pixels, ((0, 0), (0, rows * side - height), (0, columns * side - width)))
        tiles = pixels.reshape(3, rows, side, columns, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        tensors = {
            "pixels": np.ascontiguousarray(tiles),
            "normalization": self._normalization,
            "aspect_ratio_id": np.array([self._arrangements.index((rows, columns)) + 1], np.int64),
        }
        return MediaItem("image", tensors, 1)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        raise unusable(
            "this model takes no precomputed embeddings: they would not tell how a picture was cut into tiles"
        )

    def chat_marker(self, modality: str, index: int) -> str:
        return self._image

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        """With pictures, the name of the text's first token is put behind those that open it, as the reference does it.

        The tokenizer may put that token in front of all besides.
        """
        text, image, bos = prompt.text, prompt.write(self._image), prompt.write(self._bos)
        if items and prompt.adds_special_tokens and bos and bos not in text:
            rest = text
            while rest.startswith(image):
                rest = rest.removeprefix(image)
            text = text[: len(text) - len(rest)] + bos + rest
        return self._placed(prompt.encode(text), items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._placed(list(token_ids), items)

    def _placed(self, token_ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return EncodedPrompt(token_ids, place(token_ids, items, {"image": (self._image_id,)}))


def arrangements(max_tiles: int) -> list[tuple[int, int]]:
    """Rows and columns of up to max_tiles tiles, in the order in which their numbers count."""
    sides = range(1, max_tiles + 1)
    return [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles]


def canvas(height: int, width: int, choices: Sequence[tuple[int, int]], side: int) -> tuple[int, int]:
    """Rows and columns of the tiles that a picture is put on.

    The least enlargement if some arrangement allows one, else the least reduction; then the fewest tiles, and the first.
    """
    scales = [min(side * rows / height, side * columns / width) for rows, columns in choices]
    enlarging = [scale for scale in scales if scale >= 1]
    chosen = min(enlarging) if enlarging else max(scales)
    found = [choice for choice, scale in zip(choices, scales, strict=True) if scale == chosen]
    return min(found, key=math.prod)


def fitted(height: int, width: int, canvas_height: int, canvas_width: int, side: int) -> tuple[int, int]:
    """(height, width) of the picture on its canvas: as it is, but at least a tile and at most the canvas, in its own shape."""
    target_height = min(max(height, side), canvas_height)
    target_width = min(max(width, side), canvas_width)
    scale_height, scale_width = target_height / height, target_width / width
    if scale_width < scale_height:
        return min(math.floor(height * scale_width) or 1, target_height), target_width
    return target_height, min(math.floor(width * scale_height) or 1, target_width)
