"""Owns the prompts and pictures of Chameleon: squares whose codes are tokens, between two tokens that mark a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImages

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import PictureRecipe, read_crop, read_resample, read_size
from preprocess.processors.pixels import normalization
from preprocess.processors.placeholders import is_expanded, place, replace_ids, replace_markers
from preprocess.processors.precomputed import embedded_item, rows_by_counts, rows_per_item, unusable
from preprocess.processors.processor import Processor, ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings
from preprocess.processors.tokens import token_id, token_text

_START, _END = "<racm3:break>", "<eoss>"
_SIDE = 512
_LANCZOS = int(PilImages.Resampling.LANCZOS)


@processor("ChameleonForConditionalGeneration")
def chameleon(files: ProcessorFiles) -> Processor:
    return ChameleonProcessor(files)


class ChameleonProcessor:
    """A prompt with pictures ends with the token that separates turns, as the reference's does."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        self._hidden_size = config.integer("hidden_size", 4096)
        num_levels = len(config.section("vq_config")("channel_multiplier", (1, 1, 2, 2, 4)))
        self._patch_size = 2 ** (num_levels - 1)
        self._levels = read_levels(settings)
        self._recipe = PictureRecipe(
            normalization=normalization(1, (0,) * 3, (1,) * 3),  # pixels go with their levels instead
            size=read_size(settings, "size", _SIDE) if settings.flag("do_resize", True) else None,
            resample=read_resample(settings, _LANCZOS),
            crop=read_crop(settings, _SIDE) if settings.flag("do_center_crop", True) else None,
        )
        self._image_id = config.section("vocabulary_map").integer("<image>", least=0)
        self._image = token_text(files.tokenizer, self._image_id, "an image")
        names = files.tokenizer.named_tokens
        start, end = names.get("boi_token", _START), names.get("eoi_token", _END)
        self._around = tuple((name, token_id(files.tokenizer, name)) for name in (start, end))
        self._separator = names.get("sep_token", "")  # that ends a prompt, where the vocabulary has one
        self._separator_ids = [token_id(files.tokenizer, self._separator)] if self._separator else []

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        assert isinstance(media, Image)
        pixels = self._recipe(media.pixels)
        return MediaItem("image", {"pixels": pixels, "levels": self._levels}, self._num_rows(*pixels.shape[1:]))

    def _num_rows(self, height: int, width: int) -> int:
        return (height // self._patch_size) * (width // self._patch_size)

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if self._recipe.crop is None:
            raise unusable("pictures of this model have any size, so that their embeddings do not tell their number")
        num_items = len(rows_per_item(embeddings, self._hidden_size))
        rows = rows_by_counts(embeddings, self._hidden_size, [self._num_rows(*self._recipe.crop)] * num_items)
        return [embedded_item("image", item) for item in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return self._image

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        text = replace_markers(prompt, items, {"image": self._image}, self._expanded)
        token_ids = prompt.encode(text + prompt.write(self._separator) if items else text)
        return EncodedPrompt(token_ids, place(token_ids, items, {"image": (self._image_id,)}))

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        token_ids, feature_ids = list(token_ids), {"image": (self._image_id,)}
        if items and not is_expanded(token_ids, items, feature_ids):
            token_ids = replace_ids(token_ids, items, {"image": [self._image_id]}, self._expanded_ids)
            token_ids += self._separator_ids
        return EncodedPrompt(token_ids, place(token_ids, items, feature_ids))

    def _expanded(self, item: MediaItem, index: int) -> str:
        (start, _), (end, _) = self._around
        return f"{start}{self._image * item.num_features}{end}"

    def _expanded_ids(self, item: MediaItem, index: int) -> list[int]:
        (_, start), (_, end) = self._around
        return [start, *[self._image_id] * item.num_features, end]


def read_levels(settings: Settings) -> np.ndarray:
    """(3, 256) float32: what each byte of a channel stands for, rounded where the reference rounds.

    Codes are chosen by the last bit between two that are nearly as close, so that bytes and a formula would not do.
    """
    levels = np.arange(256, dtype=np.float64)
    if settings.flag("do_rescale", True):
        levels = levels * settings("rescale_factor", 0.0078)
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    if settings.flag("do_normalize", True):
        mean = np.asarray(settings("image_mean", (1.0,) * 3), np.float32)
        std = np.asarray(settings("image_std", (1.0,) * 3), np.float32)
    return (levels.astype(np.float32) - mean[:, None]) / std[:, None]
