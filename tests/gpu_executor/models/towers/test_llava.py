"""The towers of Llava's kind: an item's features are the same bits whatever else is in the call, in any number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model
from gpu_executor.models.towers.tower import TowerInput
from preprocess.media.decoded import Image, Video
from preprocess.media_item import MediaItem
from preprocess.processors.processor import Processor
from tests.gpu_executor.models.media_cases import llava, llava_next, paligemma
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint, picture

CASES = [llava.LLAVA_CLIP, llava.LLAVA_SIGLIP, llava.PIXTRAL_HF, llava_next.LLAVA_ONEVISION, paligemma.PALIGEMMA]


def items_of(processor: Processor) -> list[MediaItem]:
    items = [processor.prepare(Image(picture(*size)), 3) for size in ((28, 28), (60, 25), (28, 28))]
    if "video" in processor.modalities:
        frames = np.stack([np.asarray(picture(30, 40, seed=seed)) for seed in range(3)])
        items.append(processor.prepare(Video(frames, 1.0), 1))
    return items


def inputs_of(items: list[MediaItem]) -> list[TowerInput]:
    return [
        TowerInput(item.modality, {name: torch.tensor(value) for name, value in item.tensors.items()}) for item in items
    ]


def load(checkpoint: MediaCheckpoint, folder: Path, dtype: torch.dtype) -> Decoder:
    config = {"architectures": [checkpoint.case.architecture], **checkpoint.case.config}
    return load_model(folder, config, dtype=dtype, device=torch.device("cpu"), progress=False)


@pytest.mark.parametrize("checkpoint", CASES, ids=lambda checkpoint: checkpoint.case.name)
def test_features_do_not_depend_on_other_items(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path)
    items = items_of(checkpoint.processor(tmp_path)[0])
    model = load(checkpoint, tmp_path, torch.float32)
    together = model.encode_media(inputs_of(items))
    for item, features in zip(items, together, strict=True):
        assert len(features) == item.num_features
        assert torch.equal(features, model.encode_media(inputs_of([item]))[0])
    assert torch.equal(together[0], together[2])


@pytest.mark.parametrize("checkpoint", CASES, ids=lambda checkpoint: checkpoint.case.name)
def test_features_in_bfloat16_are_near(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path)
    inputs = inputs_of(items_of(checkpoint.processor(tmp_path)[0]))
    exact, rounded = (
        load(checkpoint, tmp_path, dtype).encode_media(inputs) for dtype in (torch.float32, torch.bfloat16)
    )
    for wanted, found in zip(exact, rounded, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).square().mean().sqrt() < 0.05 * wanted.square().mean().sqrt()
