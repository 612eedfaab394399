"""Phi-3-vision's tower joins crops into one grid, and its checkpoints name the embedding in either of two ways."""

from __future__ import annotations

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import resolve
from gpu_executor.models.rules import match_names
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.phi3v import Phi3Vision
from gpu_executor.models.towers.vit_layers import VitLayers
from tests.golden.media_cases import media_golden


def config() -> dict:
    return media_golden("Phi3VForCausalLM")["files"]["config.json"]


def test_rows_of_all_crops_end_together() -> None:
    vision = ClipVit(VitLayers(4, 2, 8, 1), 8, 2, (1,), class_token=True, drops_first=True)
    tower = Phi3Vision(vision, 6).build()
    torch.nn.init.constant_(tower.row_end, -1.0)
    patches = torch.arange(2 * 16 * 4, dtype=torch.float32).view(2, 16, 4)  # two crops of 4 x 4 patches
    grid = tower._grid(patches, 1, 2).view(2, 5, 4, 4)  # rows, 2 x 2 patches and the end, patches in a cell, size
    assert (grid[:, 4] == -1).all()
    assert torch.equal(grid[1, 0], patches[0, [8, 9, 12, 13]])
    assert torch.equal(grid[0, 3], patches[1, [2, 3, 6, 7]])


def test_without_its_numbers_the_tower_is_clips_large_one() -> None:
    without = config()
    del without["img_processor"]["vision_config"]
    vision = resolve(ConfigReader(without)).spec.tower.vision
    assert (vision.vit.hidden_size, vision.vit.num_layers, vision.side, vision.vit.act) == (1024, 23, 24, "quick_gelu")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight"])
def test_the_embedding_has_either_name(name: str) -> None:
    golden = media_golden("Phi3VForCausalLM")
    names = [other for other in golden["tensors"] if other != "model.embed_tokens.weight"]
    matches = match_names([*names, name], resolve(ConfigReader(config())).rules)
    assert next(match.targets for match in matches if match.source == name) == ("embed.weight",)


def test_a_layer_without_a_number_is_refused() -> None:
    changed = config()
    changed["img_processor"]["layer_idx"] = "last"
    with pytest.raises(CheckpointError, match="layer_idx of img_processor"):
        resolve(ConfigReader(changed))
