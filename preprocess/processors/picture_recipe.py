"""Owns how a checkpoint wants pictures: padded to a square, resized, cropped and normalized, as its image processor says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as PilImages
from PIL.Image import Image as PilImage

from preprocess.processors import fixed_point
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, channels_first, read_normalization, rgb
from preprocess.processors.settings import Settings

BICUBIC = int(PilImages.Resampling.BICUBIC)
HALF = (0.5, 0.5, 0.5)  # mean and deviation of SigLIP's pictures

# (height, width), or the length of the shorter side.
Size = tuple[int, int] | int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PictureRecipe:
    """What is done to a picture, in this order; None leaves a step out. `normalization` as in pixels.py."""

    normalization: np.ndarray
    ground: tuple[int, int, int] | None = None  # of the square that the picture is put in the middle of
    size: Size | None = None
    resample: int = BICUBIC
    crop: tuple[int, int] | None = None  # (height, width) around the middle; what is missing is black

    def __call__(self, image: PilImage) -> np.ndarray:
        """(3, H, W) uint8."""
        image = rgb(image)
        if self.ground is not None:
            image = in_square(image, self.ground)
        if self.size is not None:
            width, height = resized_size(image.size, self.size)
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            top, left = (image.height - self.crop[0]) // 2, (image.width - self.crop[1]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return channels_first(image)

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """(3, H, W) uint8 of a video's frame (H, W, 3) uint8, resized as processors of videos do it, see fixed_point.py."""
        if self.size is not None:
            width, height = resized_size((frame.shape[1], frame.shape[0]), self.size)
            frame = fixed_point.resized(frame, width, height, self.resample)
        if self.crop is not None:
            frame = _middle(frame, *self.crop)
        return np.ascontiguousarray(frame.transpose(2, 0, 1))

    def tensors(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """An item's tensors of pixels (..., 3, H, W) that this recipe gave."""
        return {"pixels": pixels, "normalization": self.normalization}


def _middle(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) around the middle of a frame; what is missing is black."""
    short, narrow = max(height - frame.shape[0], 0), max(width - frame.shape[1], 0)
    frame = np.pad(frame, ((short // 2, -(-short // 2)), (narrow // 2, -(-narrow // 2)), (0, 0)))
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, left : left + width]


def resized_size(size: tuple[int, int], wanted: Size) -> tuple[int, int]:
    """(width, height) of a picture of `size` (width, height) after resizing."""
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    width, height = size
    if width <= height:
        return wanted, int(wanted * height / width)
    return int(wanted * width / height), wanted


def in_square(image: PilImage, ground: tuple[int, int, int]) -> PilImage:
    """The picture in the middle of a square of its longer side."""
    side = max(image.size)
    square = PilImages.new("RGB", (side, side), ground)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def processor_type(settings: Settings, default: str) -> str:
    """The class of transformers that an image processor's settings name, without what tells its variants apart."""
    name = str(settings("image_processor_type", None) or settings("feature_extractor_type", default))
    return name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


def read_clip_recipe(
    settings: Settings, side: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> PictureRecipe:
    """The recipe of CLIP's and Llava's image processors: the shorter side to `side`, and the square in the middle."""
    ground = None
    if settings.flag("do_pad", False) and processor_type(settings, "") == "LlavaImageProcessor":
        red, green, blue = (int(value * 255) for value in settings("image_mean", mean))
        ground = (red, green, blue)
    return PictureRecipe(
        normalization=read_normalization(settings.data, mean, std),
        ground=ground,
        size=read_size(settings, "size", side) if settings.flag("do_resize", True) else None,
        resample=read_resample(settings),
        crop=read_crop(settings, side) if settings.flag("do_center_crop", True) else None,
    )


def read_siglip_recipe(
    settings: Settings, side: int, mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> PictureRecipe:
    """The recipe of SigLIP's image processor: squeezed to a square of `side`."""
    return PictureRecipe(
        normalization=read_normalization(settings.data, mean, std),
        size=read_size(settings, "size", (side, side)) if settings.flag("do_resize", True) else None,
        resample=read_resample(settings),
        crop=read_crop(settings, side) if settings.flag("do_center_crop", False) else None,
    )


def read_size(settings: Settings, name: str, default: Size) -> Size:
    """A size: {"shortest_edge"}, {"height", "width"}, or one number, which older files have.

    One number is the shorter side where `default` is one, a square where it is a pair.
    """
    value = settings(name, default)
    if isinstance(value, Mapping):
        sides = {key: length for key, length in value.items() if length is not None}
        if sides.keys() == {"height", "width"}:
            return sides["height"], sides["width"]
        if sides.keys() == {"shortest_edge"}:
            return sides["shortest_edge"]
    elif isinstance(value, int):
        return (value, value) if isinstance(default, tuple) else value
    elif len(value) == 2:
        return value[0], value[1]
    raise settings.wrong(name, value, "an object with height and width, or with shortest_edge")


def read_crop(settings: Settings, side: int) -> tuple[int, int]:
    """What is cut out of the middle, (height, width)."""
    size = read_size(settings, "crop_size", (side, side))
    return size if isinstance(size, tuple) else (size, size)


def read_resample(settings: Settings, default: int = BICUBIC) -> int:
    """The resampling, by PIL's number."""
    value = settings("resample", default)
    if value not in list(map(int, PilImages.Resampling)):
        raise settings.wrong("resample", value, "one of PIL's numbers")
    return int(value)
