"""GLM-4V's tower: norms behind the branches, rows around the picture, and numbers that must fit each other."""

from __future__ import annotations

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import resolve
from gpu_executor.models.towers.glm4v import Glm4Vision
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayer, VitLayers
from tests.golden.media_cases import media_golden

VIT = VitLayers(8, 2, 16, 1, post_norm=True)


def drawn_at_random(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@torch.inference_mode()
def test_norms_stand_behind_the_branches() -> None:
    layer, x = drawn_at_random(VitLayer(VIT)), torch.randn(1, 5, 8)
    attended = x + layer.norm1(layer.attn(x))
    torch.testing.assert_close(layer(x), attended + layer.norm2(layer.mlp(attended)))


@torch.inference_mode()
def test_learned_rows_begin_and_end_a_picture() -> None:
    tower = drawn_at_random(Glm4Vision(VIT, 2, 17, 12, 6, divisor=4.0).build())
    (rows,) = tower([TowerInput("image", {"pixels": torch.randn(3, 8, 8)})], None)
    assert rows.shape == (4 + 2, 6)
    assert torch.equal(rows[[0, -1]], torch.cat((tower.begin, tower.end)) / 4)


def test_positions_that_are_not_the_patches_are_refused() -> None:
    config = media_golden("ChatGLMModel-glm4v")["files"]["config.json"]
    config["vision_config"]["num_positions"] = 16
    with pytest.raises(CheckpointError, match="num_positions of vision_config"):
        resolve(ConfigReader(config))


def test_chatglm_without_vision_has_no_tower() -> None:
    config = media_golden("ChatGLMModel-glm4v")["files"]["config.json"] | {"vision_config": None}
    assert resolve(ConfigReader(config)).spec.tower is None
