"""Owns how pictures become arrays: the resampling of PIL, and pixels that travel as bytes with their normalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def rgb(image: PilImage) -> PilImage:
    """The picture in RGB; transparency is put on white."""
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = PilImages.new("RGBA", image.size, (255, 255, 255, 255))
        return PilImages.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def channels_first(image: PilImage) -> np.ndarray:
    """(3, H, W) uint8 of an RGB picture."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalization(scale: float, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(1 + 2C) float32: what gpu_executor.models.towers.tower.normalized makes floats of uint8 pixels with."""
    return np.array([scale, *mean, *std], np.float32)


def read_normalization(config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The normalization that a preprocessor_config.json asks for; `mean` and `std` where it does not say."""
    num_channels = len(mean)
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not config.get("do_normalize", True):
        return normalization(scale, (0.0,) * num_channels, (1.0,) * num_channels)
    return normalization(scale, config.get("image_mean") or mean, config.get("image_std") or std)
