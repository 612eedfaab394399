"""Qwen-VL's tower: positions for grids of any size, and a config that must fit its text model."""

from __future__ import annotations

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import resolve
from gpu_executor.models.towers.qwen_vl import QwenVision
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers
from tests.golden.media_cases import media_golden


@torch.inference_mode()
def test_a_picture_of_any_grid_gives_as_many_rows() -> None:
    torch.manual_seed(0)
    tower = QwenVision(VitLayers(8, 2, 16, 1), 2, 4, 128).build()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    pictures = [torch.randn(3, side, side) for side in (32, 8, 8)]
    features = tower([TowerInput("image", {"pixels": picture}) for picture in pictures], None)
    assert [rows.shape for rows in features] == [(4, 128)] * 3
    alone = tower([TowerInput("image", {"pixels": pictures[2]})], None)
    assert torch.equal(alone[0], features[2])


def test_a_tower_of_another_width_is_refused() -> None:
    config = media_golden("QWenLMHeadModel-vl")["files"]["config.json"]
    config["visual"]["output_dim"] = 256
    with pytest.raises(CheckpointError, match="output_dim of visual"):
        resolve(ConfigReader(config))


def test_qwen_without_visual_has_no_tower() -> None:
    config = media_golden("QWenLMHeadModel-vl")["files"]["config.json"] | {"visual": None}
    assert resolve(ConfigReader(config)).spec.tower is None
