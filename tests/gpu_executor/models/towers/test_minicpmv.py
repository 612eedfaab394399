"""MiniCPM-V's tower beside torch's own attention, and its versions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import required
from gpu_executor.models.registry import resolve
from gpu_executor.models.rules import match_names
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.minicpmv import MiniCpmVision
from gpu_executor.models.towers.resampler import Resampler, grid_positions
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers
from tests.golden.media_cases import media_golden

FACTS = MiniCpmVision(VitLayers(16, 2, 24, 2), 2, 4, "drawn", 3, query_positions=True, output_size=256)


def drawn_at_random(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@torch.inference_mode()
def test_the_resampler_is_torchs_attention() -> None:
    resampler = drawn_at_random(Resampler(3, 16, 256, query_positions=True))
    patches, positions = torch.randn(2, 10, 16), torch.randn(10, 256)
    attention = nn.MultiheadAttention(256, 2, batch_first=True)
    attention.in_proj_weight.copy_(torch.cat([resampler.q.weight, resampler.k.weight, resampler.v.weight]))
    attention.in_proj_bias.copy_(torch.cat([resampler.q.bias, resampler.k.bias, resampler.v.bias]))
    attention.out_proj.load_state_dict(resampler.o.state_dict())
    values = resampler.kv_norm(resampler.kv(patches))
    queries = (resampler.query_norm(resampler.query) + resampler.query_positions).expand(2, -1, -1)
    mixed, _ = attention(queries, values + positions, values)
    wanted = resampler.norm(mixed) @ resampler.proj.weight.t()
    torch.testing.assert_close(resampler(patches, positions), wanted, atol=1e-5, rtol=1e-5)


def test_columns_are_in_the_first_half_of_a_grids_positions() -> None:
    positions = grid_positions(2, 3, 8, device=torch.device("cpu")).view(2, 3, 8)
    angles = torch.tensor([1.0, 10000**-0.5])
    torch.testing.assert_close(positions[1, 2, :4], torch.cat([(2 * angles).sin(), (2 * angles).cos()]))
    torch.testing.assert_close(positions[1, 2, 4:], torch.cat([angles.sin(), angles.cos()]))


@torch.inference_mode()
def test_the_first_version_draws_its_table_to_the_slices_grid() -> None:
    tower = drawn_at_random(FACTS.build())
    drawn = tower._positions(3, 6).view(3, 6, 16)
    table = tower.positions.view(1, 4, 4, 16).permute(0, 3, 1, 2)
    wanted = F.interpolate(table, size=(3, 6), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(drawn, wanted)


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["nearest", "one row", "drawn"])
def test_slices_do_not_depend_on_each_other(positions: Any) -> None:
    tower = drawn_at_random(dataclasses.replace(FACTS, positions=positions).build())
    whole, slices = torch.randn(3, 6, 8), torch.randn(2, 3, 8, 4)
    both = TowerInput("image", {"pixels": whole, "slices": slices})
    alone = TowerInput("image", {"pixels": slices[1]})
    first, second = tower([both, alone], None)
    assert first.shape == (9, 256)
    torch.testing.assert_close(first[6:], second)


def config(**changes: Any) -> ConfigReader:
    return ConfigReader(media_golden("MiniCPMV")["files"]["config.json"] | changes)


def test_the_first_version_has_minicpms_scales_and_timms_names() -> None:
    changes = {"version": "2.0", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64, "vision_config": None}
    changes["drop_vision_last_layer"] = None
    resolved = resolve(config(**changes))
    assert resolved.spec.decoder.embed_scale == 12
    assert resolved.spec.tower.vit.num_layers == 26
    vision = [f"vpm.blocks.{i}.{name}.{kind}" for i in range(27) for kind in ("weight", "bias")
              for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]  # fmt: skip
    names = [
        *vision,
        "vpm.patch_embed.proj.weight", "vpm.patch_embed.proj.bias", "vpm.pos_embed", "vpm.norm.weight", "vpm.norm.bias",
        "vpm.attn_pool.latent", "resampler.query", "resampler.proj", "resampler.pos_embed", "resampler.kv_proj.weight",
        "resampler.attn.in_proj_weight", "resampler.attn.in_proj_bias", "resampler.attn.out_proj.weight",
        "resampler.attn.out_proj.bias", *(f"resampler.ln_{n}.{k}" for n in ("q", "kv", "post") for k in ("weight", "bias")),
    ]  # fmt: skip
    tower_rules = [rule for rule in resolved.rules if not rule.pattern.startswith(r"(?:llm\.)")]
    found = {target for match in match_names(names, tower_rules) for target in match.targets}
    assert found == {name for name in required(resolved.spec, resolved.extras) if name.startswith("tower.")}


def test_versions_without_a_number_are_told_by_their_width() -> None:
    wide = {"hidden_size": 2304, "num_attention_heads": 36, "num_key_value_heads": 36, "query_num": 64}
    first = resolve(config(version=None, **wide)).spec
    assert first.tower.positions == "drawn"
    assert resolve(config(version=None)).spec.tower.positions == "one row"
    mixer = first.decoder.layers[0].mixer
    assert isinstance(mixer, Attention) and mixer.num_heads == 36


def test_other_versions_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"version of config\.json is '4\.5'"):
        resolve(config(version=4.5))
