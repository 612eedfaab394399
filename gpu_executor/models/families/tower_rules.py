"""What rules of towers share: names of layers that are stored and not used, and fused projections of vision towers."""

from __future__ import annotations

from gpu_executor.models.rules import Rule, skip, split_qkv
from gpu_executor.models.spec import Attention
from gpu_executor.models.towers.vit_layers import VitLayers


def skip_layers_from(prefix: str, num_used: int) -> Rule:
    """Layers of a tower behind the last one whose output is used; `prefix` comes before a layer's number."""
    used = "|".join(map(str, range(num_used))) or "(?!)"
    return skip(rf"{prefix}(?!(?:{used})\.)\d+\..+")


def split_tower_qkv(pattern: str, target: str, vit: VitLayers, *, interleaved: bool = False) -> Rule:
    """A fused projection of a tower's attention: all queries, all keys, all values, or those of one head after the other."""
    head_dim = vit.hidden_size // vit.num_heads
    attention = Attention(vit.num_heads, vit.num_heads, head_dim, head_dim**-0.5)
    return split_qkv(pattern, target, attention, layout="grouped" if interleaved else "stacked")
