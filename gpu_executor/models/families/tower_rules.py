"""What families with towers share: names of timm's layers and of resamplers, layers that are not used."""

from __future__ import annotations

import torch

from gpu_executor.models.rules import Rule, rename, skip, split_qkv, transpose
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.vit_layers import VitLayers


def skip_layers_from(prefix: str, num_used: int) -> Rule:
    """Layers of a tower behind the last one whose output is used; `prefix` comes before a layer's number."""
    used = "|".join(map(str, range(num_used))) or "(?!)"
    return skip(rf"{prefix}(?!(?:{used})\.)\d+\..+")


def split_tower_qkv(pattern: str, target: str, vit: VitLayers, *, interleaved: bool = False) -> Rule:
    """A fused projection of a tower's attention: all queries, all keys, all values, or those of one head after the other."""
    return _split_qkv(pattern, target, vit.hidden_size // vit.num_heads, vit.num_heads, interleaved=interleaved)


def _split_qkv(pattern: str, target: str, head_dim: int, num_heads: int, *, interleaved: bool = False) -> Rule:
    attention = Attention(num_heads, num_heads, head_dim, head_dim**-0.5)
    return split_qkv(pattern, target, attention, layout="grouped" if interleaved else "stacked")


def timm_rules(prefix: str, vit: VitLayers) -> tuple[Rule, ...]:
    """The layers of a vision transformer of timm, and the norm behind them; its pooling is not used."""
    layer, target = prefix + r"blocks\.(\d+)\.", r"tower.vit.layers.\1."
    return (
        skip_layers_from(prefix + r"blocks\.", vit.num_layers),
        rename(prefix + r"patch_embed\.proj\.(weight|bias)", r"tower.patch.\1"),
        rename(layer + r"norm([12])\.(weight|bias)", target + r"norm\2.\3"),
        split_tower_qkv(layer + r"attn\.qkv\.(weight|bias)", target + r"attn.{}.\2", vit),
        rename(layer + r"attn\.proj\.(weight|bias)", target + r"attn.o.\2"),
        rename(layer + r"mlp\.fc1\.(weight|bias)", target + r"mlp.up.\2"),
        rename(layer + r"mlp\.fc2\.(weight|bias)", target + r"mlp.down.\2"),
        rename(prefix + r"norm\.(weight|bias)", r"tower.norm.\1"),
        skip(prefix + r"attn_pool\..+"),
    )


def resampler_rules(attention: str, behind: str, output_size: int) -> tuple[Rule, ...]:
    """A resampler whose attention is below one prefix, with the norm and the matrix behind it below another."""
    target = "tower.resampler."
    return (
        rename(attention + r"query", target + "query"),
        rename(attention + r"kv_proj\.weight", target + "kv.weight", optional=True),
        _split_qkv(attention + r"attn\.in_proj_(weight|bias)", target + r"{}.\1", 128, output_size // 128),
        rename(attention + r"attn\.out_proj\.(weight|bias)", target + r"o.\1"),
        rename(attention + r"ln_q\.(weight|bias)", target + r"query_norm.\1"),
        rename(attention + r"ln_kv\.(weight|bias)", target + r"kv_norm.\1"),
        rename(behind + r"ln_post\.(weight|bias)", target + r"norm.\1"),
        transpose(behind + r"proj", target + "proj.weight"),
    )


def without_batch(tensor: torch.Tensor) -> torch.Tensor:
    """(1, ...) -> (...)."""
    return tensor.squeeze(0)
