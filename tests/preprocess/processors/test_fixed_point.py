"""Frames of videos are resized to the bytes that torch gives, which is what transformers' video processors resize with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preprocess.processors.fixed_point import RESAMPLINGS, resized
from preprocess.processors.picture_recipe import PictureRecipe
from preprocess.processors.pixels import CLIP_MEAN, CLIP_STD, normalization
from tests.gpu_executor.models.media_checkpoints import picture

MODES = dict(zip(RESAMPLINGS, ("bilinear", "bicubic"), strict=True))
SIZES = [
    ((40, 28), (28, 28)), ((90, 50), (56, 56)), ((320, 240), (56, 28)), ((20, 21), (28, 33)), ((5, 7), (33, 2)),
    ((28, 28), (28, 28)), ((64, 1), (3, 3)),
]  # fmt: skip


@pytest.mark.parametrize("resample", RESAMPLINGS, ids=MODES.get)
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_bytes_are_those_of_torch(old: tuple[int, int], new: tuple[int, int], resample: int) -> None:
    frames = np.stack([np.asarray(picture(*old, seed=seed)) for seed in range(2)])
    wanted = torch.nn.functional.interpolate(
        torch.tensor(frames).permute(0, 3, 1, 2), new[::-1], mode=MODES[resample], antialias=True
    )
    np.testing.assert_array_equal(resized(frames, *new, resample), wanted.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("size", "rows", "columns"), [((10, 7), (2, 6), (3, 7)), ((3, 9), (3, 7), None)], ids=["inside", "narrow"]
)
def test_frames_are_cropped_around_the_middle(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int] | None
) -> None:
    frame = np.asarray(picture(*size))
    cropped = PictureRecipe(normalization(1 / 255, CLIP_MEAN, CLIP_STD), crop=(4, 4)).frame(frame)
    assert cropped.shape == (3, 4, 4)
    if columns is not None:
        top, left = (size[1] - 4) // 2, (size[0] - 4) // 2
        np.testing.assert_array_equal(cropped, frame[top : top + 4, left : left + 4].transpose(2, 0, 1))
    else:
        assert not cropped[:, :, -1].any() and cropped[:, :, 0].any()
