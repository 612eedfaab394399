"""InternViT: positions for other sizes, rows and columns of the first version, layers that are not used, text models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from forebay.errors import CheckpointError, UnknownArchitecture
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model
from gpu_executor.models.registry import resolve
from gpu_executor.models.towers.internvit import InternVit
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers, resized_positions
from tests.golden.materialize import materialize
from tests.golden.media_cases import media_golden
from tests.gpu_executor.models.paged import run_in_chunks

VIT = VitLayers(hidden_size=8, num_heads=2, mlp_size=12, num_layers=1, branch_scales=True)


def tower(*, swapped: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    module = InternVit(VIT, 2, 16, 2, swapped, 8, True, 6).build()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def features(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return module([TowerInput("image", {"pixels": pixels})], None)[0]


def test_a_tables_own_grid_is_left_as_it_is() -> None:
    table = torch.randn(16, 8)
    assert resized_positions(table, 4, 4) is table


def test_positions_of_another_grid_are_drawn_bicubically() -> None:
    table = torch.randn(16, 8)
    grid = F.interpolate(table.view(4, 4, 8).permute(2, 0, 1)[None], size=(3, 6), mode="bicubic")
    assert torch.equal(resized_positions(table, 3, 6).view(3, 6, 8), grid[0].permute(1, 2, 0))


@torch.inference_mode()
def test_tiles_do_not_depend_on_each_other() -> None:
    module, tiles = tower(), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(features(module, tiles)[4:8], features(module, tiles[1:2]))


@torch.inference_mode()
def test_the_first_version_swaps_rows_and_columns() -> None:
    tiles = torch.randn(1, 3, 8, 8)
    upright, swapped = features(tower(), tiles), features(tower(swapped=True), tiles)
    assert torch.equal(upright.view(2, 2, 6).transpose(0, 1), swapped.view(2, 2, 6))


def config(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(media_golden("InternVLChatModel")["files"]["config.json"]) | changes


def test_layers_behind_the_selected_one_are_not_loaded(tmp_path: Path) -> None:
    golden = media_golden("InternVLChatModel")
    golden["files"]["config.json"]["select_layer"] = -2
    folder = materialize(golden, tmp_path)
    model = load_model(
        folder, golden["files"]["config.json"], dtype=torch.float32, device=torch.device("cpu"), progress=False
    )
    assert len(model.tower.vit.layers) == 1


def test_a_layer_that_there_is_not_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"select_layer of config\.json is -5"):
        resolve(ConfigReader(config(select_layer=-5)))


@pytest.mark.parametrize(
    ("name", "model_type", "extra"),
    [("LlamaForCausalLM", "llama", {}), ("Phi3ForCausalLM", "phi3", {"sliding_window": 2047, "rope_scaling": None})],
    ids=["Llama", "Phi-3"],
)
def test_other_text_models_are_read_by_their_families(name: str, model_type: str, extra: dict[str, Any]) -> None:
    text = config()["llm_config"] | {"architectures": [name], "model_type": model_type, "rope_scaling": None, **extra}
    resolved = resolve(ConfigReader(config(llm_config=text)))
    assert resolved.spec.architecture == "InternVLChatModel"
    assert resolved.spec.tower is not None
    assert any(rule.pattern.startswith(r"(?:language_model\.)(?:(?:model\.)?layers") for rule in resolved.rules)


def test_the_large_tower_is_what_a_short_config_means() -> None:
    spec = resolve(ConfigReader(config(vision_config={"image_size": 448}, force_image_size=448))).spec
    vit = spec.tower.vit
    assert (vit.hidden_size, vit.num_heads, vit.num_layers) == (3200, 25, 48)
    assert (vit.norm, vit.qk_norm, vit.qkv_bias) == ("rms", True, False)


def test_mono_internvl_is_refused_by_name() -> None:
    text = config()["llm_config"] | {"architectures": ["InternLM2VEForCausalLM"]}
    with pytest.raises(UnknownArchitecture, match="InternLM2VEForCausalLM"):
        resolve(ConfigReader(config(llm_config=text)))


TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 270, "max_position_embeddings": 4096, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Phi3ForCausalLM"])
def test_text_models_compute_what_they_compute_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = getattr(transformers, name)(getattr(transformers, name).config_class(**TEXT)).eval()
    golden = media_golden("InternVLChatModel")
    golden["files"]["config.json"]["llm_config"] = text.config.to_dict() | {"architectures": [name]}
    folder = materialize(golden, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("language_model.")}
    tensors |= {f"language_model.{key}": tensor.clone() for key, tensor in text.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = golden["files"]["config.json"]
    model = load_model(folder, config, dtype=torch.float32, device=torch.device("cpu"), progress=False)
    ids = [5, 17, 230, 9, 9, 41]
    with torch.inference_mode():
        wanted = text(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(run_in_chunks(model, ids, 4), wanted, atol=1e-4, rtol=1e-4)
