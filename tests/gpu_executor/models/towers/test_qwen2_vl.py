"""The tower of Qwen2-VL gives transformers' features, whatever else is in the call."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from gpu_executor.models.families.qwen2_vl import _tower_rules
from gpu_executor.models.rules import match_names
from gpu_executor.models.towers.qwen2_vl import Qwen2VLTower, Qwen2VLVision
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.vit_layers import VitLayers

VIT = VitLayers(hidden_size=24, num_heads=3, mlp_size=72, num_layers=3, act="quick_gelu")
SPEC = Qwen2VLVision(VIT, out_size=20, patch_size=4, temporal_patch_size=2, merge_size=2)


@pytest.fixture(scope="module")
def reference() -> Qwen2VisionTransformerPretrainedModel:
    torch.manual_seed(3)
    config = Qwen2VLVisionConfig(
        depth=3, embed_dim=24, num_heads=3, mlp_ratio=3, hidden_size=20, patch_size=4, hidden_act="quick_gelu"
    )
    model = Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def tower(reference: Qwen2VisionTransformerPretrainedModel) -> Qwen2VLTower:
    stored = {f"visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    weights = {}
    for match in match_names(stored, _tower_rules(VIT)):
        tensor = stored[match.source]
        parts = (tensor,) if match.rule.reshape is None else match.rule.reshape(tensor)
        weights |= {name.removeprefix("tower."): part for name, part in zip(match.targets, parts, strict=True)}
    module = SPEC.build()
    module.load_state_dict(weights)
    return module.eval()


def frames(*shape: int) -> TowerInput:
    return TowerInput("video", {"pixels": torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))})


@torch.inference_mode()
def encode(tower: Qwen2VLTower, *items: TowerInput) -> list[torch.Tensor]:
    return tower(items, lambda ids: pytest.fail("this tower embeds nothing"))


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (2, 3, 8, 8), (5, 3, 16, 8)], ids=["picture", "pair", "odd-video"])
@torch.inference_mode()
def test_features_are_those_of_transformers(
    reference: Qwen2VisionTransformerPretrainedModel, tower: Qwen2VLTower, shape: tuple[int, ...]
) -> None:
    item = frames(*shape)
    pixels = item.tensors["pixels"]
    pixels = torch.cat((pixels, pixels[-1:])) if len(pixels) % 2 else pixels
    grid = [[len(pixels) // 2, shape[2] // 4, shape[3] // 4]]
    wanted = reference(tower._patched(pixels).flatten(0, 1), grid_thw=torch.tensor(grid)).pooler_output
    torch.testing.assert_close(encode(tower, item)[0], wanted, atol=1e-5, rtol=1e-5)


def test_features_of_an_item_do_not_depend_on_the_others(tower: Qwen2VLTower) -> None:
    items = [frames(1, 3, 16, 24), frames(4, 3, 8, 16)]
    for together, alone in zip(encode(tower, *items), (encode(tower, item)[0] for item in items), strict=True):
        assert torch.equal(together, alone)
