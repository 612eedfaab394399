"""Every processor makes an item of a picture of any size and mode, or says why it cannot; nothing else comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import Image
from preprocess.media.image import MODES
from preprocess.processors.processor import Processor
from tests.golden.materialize import FOLDER, read_golden
from tests.golden.media_cases import processor_of

SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (1, 300), (300, 1), (1, 3_000), (7, 201), (28, 28), (27, 29), (200, 150)]


def _takes_pictures(path: Path) -> bool:
    return any("images" in case for case in read_golden(f"media/{path.stem}")["cases"])


@pytest.fixture(
    scope="module", params=sorted(path.stem for path in (FOLDER / "media").glob("*.json") if _takes_pictures(path))
)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    folder = tmp_path_factory.mktemp("checkpoint")
    return processor_of(read_golden(f"media/{request.param}"), folder)[0]


def picture(mode: str, size: tuple[int, int]) -> PilImages.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        return PilImages.fromarray(pixels[..., 0] * np.uint16(200))
    image = PilImages.fromarray(pixels)
    return (image.convert("L") if mode in ("I", "F", "PA") else image).convert("LA" if mode == "PA" else mode)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_picture_of_any_size(size: tuple[int, int], processor: Processor) -> None:
    _check(processor, picture("RGB", size))


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode(mode: str, processor: Processor) -> None:
    _check(processor, picture(mode, (40, 30)))


def _check(processor: Processor, image: PilImages.Image) -> None:
    try:
        item = processor.prepare(Image(image), 1)
    except InvalidRequest as error:
        assert error.reason == ErrorReason.ERROR_REASON_MEDIA_UNUSABLE and "picture" in error.message
        assert max(image.size) / min(image.size) > 20  # what has a usual shape is taken
        return
    assert item.num_features > 0
    for name, tensor in item.tensors.items():
        assert tensor.size and (tensor.dtype.kind in "ui" or np.isfinite(tensor).all()), name
