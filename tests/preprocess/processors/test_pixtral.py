"""Pixtral in mistral's own format: pictures are resized as OpenCV does it, to sizes that are rounded as mistral does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.media.decoded import Image
from preprocess.processors.cubic import resized
from preprocess.processors.patch_grid import PatchGrid
from tests.golden.media_cases import media_golden, processor_of
from tests.gpu_executor.models.media_checkpoints import picture


@pytest.mark.parametrize("size", [(64, 48), (33, 50), (17, 11), (200, 3), (40, 30)], ids=str)
def test_resizing_is_cubic_convolution_of_four_pixels(size: tuple[int, int]) -> None:
    """As torch's bicubic interpolation, which has the same parameter and does not smooth either."""
    pixels = np.asarray(picture(40, 30))
    wanted = torch.nn.functional.interpolate(
        torch.tensor(pixels).permute(2, 0, 1)[None].float(), size[::-1], mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(resized(pixels, *size), wanted[0].permute(1, 2, 0).numpy(), atol=2e-3)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((128, 128), (8, 8)), ((129, 1), (1, 8)), ((300, 200), (6, 8)), ((16, 17), (2, 1)), ((500, 70), (2, 8))],
    ids=str,
)
def test_grids_hold_the_shrunk_picture(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert PatchGrid(128, 128, 16, round).of(*size) == grid


def test_pictures_travel_as_bytes_where_they_have_their_size_already(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden("PixtralForConditionalGeneration"), tmp_path)
    whole, other = (processor.prepare(Image(picture(*size)), 1) for size in ((48, 32), (50, 30)))
    assert whole.tensors["pixels"].dtype == np.uint8
    assert other.tensors["pixels"].dtype == np.float32
    assert (whole.tensors["pixels"].shape, other.tensors["pixels"].shape) == ((3, 32, 48), (3, 32, 64))
    assert (whole.facts, whole.num_features, other.facts) == ((2, 3), 6, (2, 4))
