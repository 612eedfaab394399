"""DeepSeek-VL2's tower: an odd number of patches, two grids of rows, and configs as they were released."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import resolve
from gpu_executor.models.spec import Attention, Mla
from gpu_executor.models.towers.deepseek_vl2 import DeepseekVision
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers
from tests.golden.media_cases import media_golden

FACTS = DeepseekVision(VitLayers(8, 2, 16, 1), 2, 9, 2, (32, 6, 6), whole_first=True)


def drawn_at_random(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def item(cols: int, rows: int) -> TowerInput:
    pixels = torch.randn(1 + cols * rows, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return TowerInput("image", {"pixels": pixels, "images_spatial_crop": torch.tensor([cols, rows])})


@torch.inference_mode()
def test_an_odd_number_of_patches_is_filled_up() -> None:
    tower = drawn_at_random(FACTS.build())
    (rows,) = tower([item(2, 1)], None)
    assert rows.shape == (2 * 3 + 1 + 2 * 5, 6)  # 3 x 3 patches are 2 x 2 cells
    assert torch.equal(rows[2], tower.line_end) and torch.equal(rows[6], tower.between)
    assert torch.equal(rows[11], tower.line_end)


@torch.inference_mode()
def test_the_picture_may_stand_behind_its_tiles() -> None:
    head = drawn_at_random(FACTS.build())
    tail = drawn_at_random(dataclasses.replace(FACTS, whole_first=False).build())
    first, last = head([item(1, 2)], None)[0], tail([item(1, 2)], None)[0]
    assert torch.equal(first[:6], last[-6:])
    assert torch.equal(first[7:], last[:-7])


@torch.inference_mode()
def test_tiles_lie_side_by_side_and_one_below_the_other() -> None:
    tower = drawn_at_random(FACTS.build())
    tiles = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 2, 6)  # three lines of two
    grid = tower._grid(tiles, 3, 2).view(6, 5, 6)[:, :4, 0]
    assert grid[0].tolist() == [0, 0, 1, 1]
    assert grid[5].tolist() == [4, 4, 5, 5]


def config(**changes: Any) -> dict[str, Any]:
    return media_golden("DeepseekVLV2ForCausalLM")["files"]["config.json"] | changes


def test_the_tiny_model_has_no_latents() -> None:
    text = config()["language_config"]
    tiny = text | {
        "use_mla": False,
        "kv_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "v_head_dim": 0,
    }
    assert isinstance(resolve(ConfigReader(config())).spec.decoder.layers[0].mixer, Mla)
    assert isinstance(resolve(ConfigReader(config(language_config=tiny))).spec.decoder.layers[0].mixer, Attention)


def test_what_config_does_not_say_is_siglip_of_384_pixels() -> None:
    vision = {
        "layers": 27,
        "mlp_ratio": 3.7362,
        "model_name": "siglip_so400m_patch14_384",
        "patch_size": 14,
        "width": 1152,
    }
    projector = {"model_type": "mlp_projector", "n_embed": 64}
    changed = config(vision_config=vision, projector_config=projector)
    del changed["architectures"]
    spec = resolve(ConfigReader(changed)).spec
    assert spec.architecture == "DeepseekVLV2ForCausalLM"
    tower = spec.tower
    assert (tower.vit.num_heads, tower.vit.mlp_size, tower.num_positions) == (16, 4304, 729)
    assert tower.projector_sizes == (4608, 64, 64)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tile_tag": "1D"}, "tile_tag"),
        ({"global_view_pos": "middle"}, "global_view_pos"),
        ({"projector_config": {"projector_type": "linear"}}, "projector_type of projector_config"),
        ({"projector_config": {"n_embed": 65}}, "n_embed of projector_config"),
    ],
)
def test_what_no_released_model_has_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        resolve(ConfigReader(config(**changes)))
