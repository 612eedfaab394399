"""What models that hear share: the facts of a Whisper encoder in a section of config.json, and the rules of its tensors."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.towers import read_activation
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.towers.vit_layers import VitLayers
from gpu_executor.models.towers.whisper import WhisperEncoder


def read_whisper(section: ConfigReader) -> WhisperEncoder:
    """The encoder of an audio section, whose keys all have to be there."""
    section.head_dim("d_model", "encoder_attention_heads")  # must be whole
    layers = VitLayers(
        hidden_size=section.integer("d_model"),
        num_heads=section.integer("encoder_attention_heads"),
        mlp_size=section.integer("encoder_ffn_dim"),
        num_layers=section.integer("encoder_layers"),
        act=read_activation(section, "activation_function", default="gelu"),
        eps=1e-5,
        k_bias=False,
    )
    return WhisperEncoder(layers, section.integer("num_mel_bins"), section.integer("max_source_positions"))


def whisper_rules(prefix: str, target: str, norm: str) -> tuple[Rule, ...]:
    """Tensors behind the regular expression `prefix` to those of WhisperStack below `target`; `norm` is the last one."""
    layer, mine = rf"{prefix}layers\.(\d+)\.", rf"{target}stack.layers.\1."
    return (
        rename(rf"{prefix}(conv[12])\.(weight|bias)", rf"{target}\1.\2"),
        rename(rf"{prefix}embed_positions\.weight", f"{target}positions"),
        rename(layer + r"self_attn_layer_norm\.(weight|bias)", mine + r"norm1.\2"),
        rename(layer + r"self_attn\.([qkv])_proj\.(weight|bias)", mine + r"attn.\2.\3"),
        rename(layer + r"self_attn\.out_proj\.(weight|bias)", mine + r"attn.o.\2"),
        rename(layer + r"final_layer_norm\.(weight|bias)", mine + r"norm2.\2"),
        rename(layer + r"fc1\.(weight|bias)", mine + r"mlp.up.\2"),
        rename(layer + r"fc2\.(weight|bias)", mine + r"mlp.down.\2"),
        rename(rf"{prefix}layer_norm\.(weight|bias)", rf"{norm}.\1"),
    )
