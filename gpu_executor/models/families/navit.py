"""What models share whose vision section is Idefics3's: the facts of its transformer, and the rules of its tensors."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.tower_rules import skip_layers_from
from gpu_executor.models.families.towers import read_activation
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.towers.navit import Navit
from gpu_executor.models.towers.vit_layers import VitLayers

# What transformers' config class means where a section does not say.
_DEFAULTS = {
    "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16, "image_size": 224,
    "patch_size": 32, "layer_norm_eps": 1e-6,
}  # fmt: skip


def read_navit(section: ConfigReader, num_layers: int | None = None) -> Navit:
    """The transformer of a vision section, up to its last layer or its first num_layers."""
    section = section.with_defaults(**_DEFAULTS)
    section.head_dim("hidden_size", "num_attention_heads")  # must be whole
    vit = VitLayers(
        hidden_size=section.integer("hidden_size"),
        num_heads=section.integer("num_attention_heads"),
        mlp_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers") if num_layers is None else num_layers,
        act=read_activation(section, "hidden_act", default="gelu_pytorch_tanh"),
        eps=section.number("layer_norm_eps"),
    )
    patch_size = section.integer("patch_size")
    return Navit(vit, patch_size, section.integer("image_size") // patch_size)


def navit_rules(prefix: str, target: str, navit: Navit) -> tuple[Rule, ...]:
    """Tensors behind the regular expression `prefix` to those of NavitModel below `target`, but for the last norm."""
    layer, mine = rf"{prefix}encoder\.layers\.(\d+)\.", rf"{target}vit.layers.\1."
    return (
        skip_layers_from(rf"{prefix}encoder\.layers\.", navit.vit.num_layers),
        rename(rf"{prefix}embeddings\.patch_embedding\.(weight|bias)", rf"{target}patch.\1"),
        rename(rf"{prefix}embeddings\.position_embedding\.weight", f"{target}positions"),
        rename(layer + r"layer_norm([12])\.(weight|bias)", mine + r"norm\2.\3"),
        rename(layer + r"self_attn\.([qkv])_proj\.(weight|bias)", mine + r"attn.\2.\3"),
        rename(layer + r"self_attn\.out_proj\.(weight|bias)", mine + r"attn.o.\2"),
        rename(layer + r"mlp\.fc1\.(weight|bias)", mine + r"mlp.up.\2"),
        rename(layer + r"mlp\.fc2\.(weight|bias)", mine + r"mlp.down.\2"),
    )
