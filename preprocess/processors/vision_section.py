"""Owns what processors of Llava's kind have to know of config.json: how many rows a vision tower makes, and their width."""

from __future__ import annotations

import dataclasses

import numpy as np

from preprocess.media.decoded import Embeddings
from preprocess.media_item import MediaItem
from preprocess.processors.precomputed import embedded_item, rows_by_counts, rows_per_item, unusable
from preprocess.processors.settings import Settings

# What transformers' config classes mean where a section leaves it out.
_HIDDEN_SIZES = {"gemma": 3072, "gemma2": 2304}
_HIDDEN_SIZE = 4096  # of Llama, Mistral and Qwen2


@dataclasses.dataclass(frozen=True, slots=True)
class VisionSection:
    """A tower of CLIP's or SigLIP's kind: its pictures, and which rows of them are taken."""

    image_size: int
    patch_size: int
    class_token: bool
    drops_first: bool

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_rows(self) -> int:
        """Rows of one picture."""
        return self.side**2 + self.class_token - self.drops_first

    def checked(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (3, H, W) as they are; raises InvalidRequest (MEDIA_UNUSABLE) unless they are the tower's picture."""
        height, width = pixels.shape[1:]
        if (height, width) != (self.image_size, self.image_size):
            raise unusable(
                f"the image processor makes {width} x {height} pixels; the vision tower takes {self.image_size} x "
                f"{self.image_size}"
            )
        return pixels

    def embedded(self, embeddings: Embeddings, hidden_size: int) -> list[MediaItem]:
        """Items of precomputed embeddings, each with the rows of one picture; raises InvalidRequest (MEDIA_UNUSABLE)."""
        num_items = len(rows_per_item(embeddings, hidden_size))
        rows = rows_by_counts(embeddings, hidden_size, [self.num_rows] * num_items)
        return [embedded_item(embeddings.modality, item) for item in rows]


def read_vision(
    config: Settings, *, strategy: str = "default", default_type: str = "clip_vision_model"
) -> VisionSection:
    """The tower of a config.json; where it does not say which rows are taken, or what kind of tower it is, the defaults."""
    section = config.section("vision_config")
    model_type = section("model_type", default_type)
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise section.wrong("model_type", model_type, "clip_vision_model or siglip_vision_model")
    is_clip = model_type == "clip_vision_model"
    large = (336, 14) if is_clip else (384, 14)  # of a config without the section
    defaults = large if not section.data else (224, 32) if is_clip else (224, 16)
    return VisionSection(
        image_size=section.integer("image_size", defaults[0]),
        patch_size=section.integer("patch_size", defaults[1]),
        class_token=is_clip,
        drops_first=config("vision_feature_select_strategy", strategy) == "default",
    )


def text_hidden_size(config: Settings) -> int:
    """The width of the text model's embeddings."""
    section = config.section("text_config")
    return section.integer("hidden_size", _HIDDEN_SIZES.get(section("model_type", ""), _HIDDEN_SIZE))


def media_token_id(config: Settings, modality: str, default: int) -> int:
    """The id of the token that stands for features, by its older name or the newer one."""
    name = f"{modality}_token_index" if f"{modality}_token_index" in config.data else f"{modality}_token_id"
    return config.integer(name, default, least=0)
