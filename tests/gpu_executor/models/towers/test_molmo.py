"""Molmo's tower: what it adds to which token; and its text models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model
from gpu_executor.models.registry import resolve
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.molmo import MolmoVision
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers
from tests.golden.materialize import materialize
from tests.golden.media_cases import media_golden

NAME = "MolmoForCausalLM"
VISION = ClipVit(VitLayers(8, 2, 16, 2), 8, 2, (2, 1), class_token=True, drops_first=True)


def tower_of(vision: ClipVit = VISION) -> torch.nn.Module:
    torch.manual_seed(0)
    tower = MolmoVision(vision, 12, 6, first_token_id=100, num_tokens=4).build()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    return tower


def item(side: int = 8, patches: int = 16, **changes: Any) -> TowerInput:
    torch.manual_seed(1)
    cells = (patches**0.5 + 1) // 2
    tensors = {
        "pixels": torch.randn(3, side, side),
        "whole": torch.randn(3, side, side),
        "crop_starts": torch.tensor([[0, 0]]),
        "image_masks": torch.ones(2, patches),
        "image_tokens": torch.tensor([100, 102, 102, 101]),
        "image_input_idx": torch.tensor([1, *[-100] * int(2 * cells**2 - 2), 2]),
    }
    return TowerInput("image", tensors | changes)


@torch.inference_mode()
def test_features_are_added_to_the_tokens_they_belong_to() -> None:
    tower = tower_of()
    (rows,) = tower([item()], None)
    assert torch.equal(rows[[0, 3]], tower.tokens[[0, 1]])
    added = rows[1:3] - tower.tokens[2]
    assert (added.abs().amax(1) > 1e-3).all()
    assert not torch.allclose(added[0], added[1])


@torch.inference_mode()
def test_patches_without_picture_and_with_some_are_marked_apart() -> None:
    tower = tower_of()
    full, empty, partly = (tower([item(image_masks=torch.full((2, 16), share))], None)[0] for share in (1.0, 0.0, 0.5))
    minus = tower([item(image_masks=torch.full((2, 16), -1.0))], None)[0]  # as the reference has it of one crop
    assert not torch.allclose(full[1:3], empty[1:3]) and not torch.allclose(empty[1:3], partly[1:3])
    assert torch.equal(partly, minus)


@torch.inference_mode()
def test_an_odd_number_of_patches_is_filled_up() -> None:
    vision = ClipVit(VitLayers(8, 2, 16, 2), 6, 2, (2, 1), class_token=True, drops_first=True)
    (rows,) = tower_of(vision)([item(side=6, patches=9)], None)
    assert rows.shape == (4, 6)


def config(**changes: Any) -> dict[str, Any]:
    return media_golden(NAME)["files"]["config.json"] | changes


def test_tokens_that_only_pictures_bring_are_never_generated(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    folder = materialize(golden, tmp_path)
    model = load_model(folder, config(), dtype=torch.float32, device=torch.device("cpu"), progress=False)
    assert model.spec.vocab_size == 259 + 128
    logits = model.logits(torch.randn(2, 64))
    assert torch.isinf(logits[:, 259:]).all() and torch.isfinite(logits[:, :259]).all()


def test_the_large_tower_is_what_config_does_not_say() -> None:
    changed = config()
    del changed["vision_backbone"]
    vision = resolve(ConfigReader(changed)).spec.tower.vision
    assert (vision.outputs, vision.side, vision.vit.num_layers) == ((22, 15), 24, 22)


def test_norms_may_stand_behind_the_branches_as_in_olmo_2() -> None:
    spec = resolve(ConfigReader(config(norm_after=True, attention_layer_norm=True, qkv_bias=False))).spec
    layer = spec.decoder.layers[0]
    assert layer.residual == "branch_norm"
    assert isinstance(layer.mixer, Attention) and layer.mixer.qk_norm == "projection"


def test_what_no_released_model_has_is_refused() -> None:
    with pytest.raises(CheckpointError, match="layer_norm_type"):
        resolve(ConfigReader(config(layer_norm_type="default")))
    with pytest.raises(CheckpointError, match="image_num_layers of vision_backbone"):
        resolve(ConfigReader(config(vision_backbone={"image_num_layers": 8})))
