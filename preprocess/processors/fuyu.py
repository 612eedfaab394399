"""Fuyu (Adept, 2023): a picture as rows of patches with a newline behind each, in front of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import HALF, read_resample
from preprocess.processors.pixels import channels_first, read_normalization, rgb
from preprocess.processors.placeholders import is_expanded, place
from preprocess.processors.precomputed import unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings
from preprocess.processors.tokens import token_id

_GROUND = 1  # of what pads a picture to whole patches, of 255


class FuyuProcessor:
    """An item's `facts` are its rows and columns of patches."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        settings = image_settings(files)
        size, patch = settings.section("size"), settings.section("patch_size")
        self._size = size.integer("width", 1920), size.integer("height", 1080)
        self._patch = patch.integer("width", 30), patch.integer("height", 30)
        if any(side % of_patch for side, of_patch in zip(self._size, self._patch, strict=True)):
            raise settings.wrong("size", self._size, f"whole patches of {self._patch}")
        self._resizes = settings.flag("do_resize", True)
        self._resample = read_resample(settings, PilImages.Resampling.BILINEAR)
        self._normalization = read_normalization(_per_channel(settings), HALF, HALF)
        self._speaker, self._newline, self._start, self._answer = (
            token_id(files.tokenizer, text) for text in ("|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>")
        )
        self._feature_ids = {"image": (self._speaker,)}

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        """Pictures are shrunk to fit, never enlarged."""
        if not isinstance(media, Image):
            raise unusable(f"this model takes no {media.modality} items")
        image = rgb(media.pixels)
        if self._resizes and (image.width > self._size[0] or image.height > self._size[1]):
            scale = min(self._size[1] / image.height, self._size[0] / image.width)
            width, height = int(image.width * scale), int(image.height * scale)
            if not width or not height:
                raise unusable(f"a picture of {image.width:,} x {image.height:,} is too narrow")
            image = image.resize((width, height), self._resample)
        rows, columns = -(-image.height // self._patch[1]), -(-image.width // self._patch[0])
        missing = (0, rows * self._patch[1] - image.height), (0, columns * self._patch[0] - image.width)
        pixels = np.pad(channels_first(image), ((0, 0), *missing), constant_values=_GROUND)
        tensors = {"pixels": pixels, "normalization": self._normalization}
        return MediaItem("image", tensors, rows * columns, (rows, columns))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        raise unusable("this model takes no precomputed embeddings: they do not tell its rows of patches")

    def chat_marker(self, modality: str, index: int) -> str:
        return ""

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        """Text behind a picture is tokenized by itself, and ends in the token that begins an answer."""
        if not items:
            return EncodedPrompt(prompt.encode(prompt.text))
        return self._behind(prompt.encode(prompt.text, add_special_tokens=False), items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        ids = list(token_ids)
        if not items:
            return EncodedPrompt(ids)
        if is_expanded(ids, items, self._feature_ids):
            return EncodedPrompt(ids, place(ids, items, self._feature_ids))
        ids = ids[1:] if ids[:1] == [self._start] else ids
        return self._behind(ids[:-1] if ids[-1:] == [self._answer] else ids, items)

    def _behind(self, ids: list[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        """A text's ids behind the picture."""
        if len(items) > 1:
            raise InvalidRequest(
                f"the prompt comes with {len(items)} pictures; this model takes 1", ErrorReason.ERROR_REASON_MEDIA_COUNT
            )
        rows, columns = items[0].facts
        ids = [*([self._speaker] * columns + [self._newline]) * rows, self._start, *ids, self._answer]
        return EncodedPrompt(ids, place(ids, items, self._feature_ids))


def _per_channel(settings: Settings) -> Mapping[str, object]:
    """The settings with a mean and a deviation for each channel, where files have one number for all."""
    one = {key: value for key in ("image_mean", "image_std") if isinstance(value := settings(key, None), (int, float))}
    return settings.data | {key: (value,) * 3 for key, value in one.items()}


@processor("FuyuForCausalLM")
def fuyu(files: ProcessorFiles) -> FuyuProcessor:
    return FuyuProcessor(files)
