"""Aria (Li et al., 2024): a picture at the top left of a square of 980, 256 tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image as PilImage

from preprocess.media.decoded import DecodedMedia, Embeddings, Image
from preprocess.media_item import EncodedPrompt, MediaItem
from preprocess.processors.picture_recipe import HALF, read_resample
from preprocess.processors.pixels import channels_first, read_normalization, rgb
from preprocess.processors.precomputed import embedded_item, rows_per_item, unusable
from preprocess.processors.processor import ProcessorFiles, PromptText
from preprocess.processors.registry import processor
from preprocess.processors.settings import Settings, image_settings, model_settings
from preprocess.processors.token_runs import TokenRuns
from preprocess.processors.vision_section import media_token_id, text_hidden_size

_SIDE = 980  # of the square, whatever preprocessor_config.json says: transformers' processor asks for it
_TOKENS = {"490": 128, "980": 256}


class AriaProcessor:
    """Pictures are enlarged too. Of the square, only what a patch with a part of the picture covers is made."""

    modalities = ("image",)
    sample_rate = None

    def __init__(self, files: ProcessorFiles) -> None:
        config, settings = model_settings(files), image_settings(files)
        tokens = Settings(
            Settings(files.processor, "processor_config.json")("size_conversion", _TOKENS), "size_conversion"
        )
        self._hidden_size = text_hidden_size(config)
        self._patch_size = config.section("vision_config").integer("patch_size", 32)
        self._num_tokens = tokens.integer(str(_SIDE))
        self._least_side = min(settings.integer("min_image_size", 336), _SIDE)
        self._resample = read_resample(settings)
        self._normalization = read_normalization(settings.data, HALF, HALF)
        self._runs = TokenRuns(files.tokenizer, {"image": media_token_id(config, "image", 9)})

    def prepare(self, media: DecodedMedia, num_items: int) -> MediaItem:
        if not isinstance(media, Image):
            raise unusable(f"this model takes no {media.modality} items")
        tensors = {
            "pixels": self._patched(rgb(media.pixels))[None],
            "normalization": self._normalization,
            "max_image_size": np.array([_SIDE]),
        }
        return MediaItem("image", tensors, self._num_tokens)

    def _patched(self, image: PilImage) -> np.ndarray:
        """(3, H, W) uint8: the picture resized, with black at its far edges up to whole patches."""
        scale = _SIDE / max(image.size)
        if image.width >= image.height:
            size = (_SIDE, max(int(image.height * scale), self._least_side))
        else:
            size = (max(int(image.width * scale), self._least_side), _SIDE)
        pixels = channels_first(image.resize(size, self._resample))
        whole = [min(-(-side // self._patch_size) * self._patch_size, _SIDE) for side in pixels.shape[1:]]
        return np.pad(pixels, ((0, 0), *((0, to - side) for to, side in zip(whole, pixels.shape[1:], strict=True))))

    def accept(self, embeddings: Embeddings) -> list[MediaItem]:
        if embeddings.modality != "image":
            raise unusable(f"this model takes no {embeddings.modality} items")
        rows = rows_per_item(embeddings, self._hidden_size)
        for of_item in rows:
            if len(of_item) % self._num_tokens:
                raise unusable(f"image embeddings have {len(of_item):,} rows; a picture has {self._num_tokens:,}")
        return [embedded_item("image", of_item) for of_item in rows]

    def chat_marker(self, modality: str, index: int) -> str:
        return f"<fim_prefix>{self._runs.markers['image']}<fim_suffix>"

    def expand_text(self, prompt: PromptText, items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_text(prompt, items)

    def expand_ids(self, token_ids: Sequence[int], items: Sequence[MediaItem]) -> EncodedPrompt:
        return self._runs.expand_ids(token_ids, items)


@processor("AriaForConditionalGeneration")
def aria(files: ProcessorFiles) -> AriaProcessor:
    return AriaProcessor(files)
