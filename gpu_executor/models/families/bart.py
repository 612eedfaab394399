"""BART (Lewis et al., 2019): an encoder-decoder with norms behind the branches and learned positions; all linears have biases."""

from __future__ import annotations

import math

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.opt import without_first_two
from gpu_executor.models.names import ENCODER, every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, skip
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Learned, Mlp, ModelSpec, Norm

_EXTRAS = (
    "embed_norm.weight", "embed_norm.bias", f"{ENCODER}embed_norm.weight", f"{ENCODER}embed_norm.bias",
    *every_layer(
        "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm1.bias", "mlp.up.bias", "mlp.down.bias",
        "norm2.bias", "cross.q.bias", "cross.k.bias", "cross.v.bias", "cross.o.bias", "cross_norm.bias",
    ),
)  # fmt: skip


def one_row(bias: torch.Tensor) -> torch.Tensor:
    """(1, V) -> (V)."""
    return bias.flatten()


def _stack_rules(stack: str, prefix: str) -> tuple[Rule, ...]:
    """Rules of the encoder or the decoder, whose canonical names begin with `prefix`."""
    source = rf"(?:model\.)?{stack}\."  # bart-base's file has no prefix
    layer, target = source + r"layers\.(\d+)\.", prefix + r"layers.\1."
    return (
        change(source + r"embed_positions\.weight", f"{prefix}positions.weight", without_first_two),
        rename(source + r"layernorm_embedding\.(weight|bias)", rf"{prefix}embed_norm.\1"),
        rename(layer + r"self_attn\.([qkv])_proj\.(weight|bias)", target + r"mixer.\2.\3"),
        rename(layer + r"self_attn\.out_proj\.(weight|bias)", target + r"mixer.o.\2"),
        rename(layer + r"self_attn_layer_norm\.(weight|bias)", target + r"norm1.\2"),
        rename(layer + r"fc1\.(weight|bias)", target + r"mlp.up.\2"),
        rename(layer + r"fc2\.(weight|bias)", target + r"mlp.down.\2"),
        rename(layer + r"final_layer_norm\.(weight|bias)", target + r"norm2.\2"),  # the MLP's, not the last
        skip(source + r"(?:embed_tokens\.weight|version)"),  # the shared embedding again
    )


_RULES = (
    rename(r"(?:model\.)?shared\.weight", "embed.weight"),
    *_stack_rules("encoder", ENCODER),
    *_stack_rules("decoder", ""),
    rename(r"(?:model\.)?decoder\.layers\.(\d+)\.encoder_attn\.([qkv])_proj\.(weight|bias)", r"layers.\1.cross.\2.\3"),
    rename(r"(?:model\.)?decoder\.layers\.(\d+)\.encoder_attn\.out_proj\.(weight|bias)", r"layers.\1.cross.o.\2"),
    rename(r"(?:model\.)?decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.(weight|bias)", r"layers.\1.cross_norm.\2"),
    rename(r"lm_head\.weight", "head.weight", optional=True),
    change(r"final_logits_bias", "head.bias", one_row, optional=True),
)  # fmt: skip


def _read_stack(config: ConfigReader, side: str, num_positions: int) -> DecoderSpec:
    """The encoder or the decoder; `side` begins its keys. Only the decoder is causal and reads the other."""
    hidden_size, num_heads = config.integer("d_model"), config.integer(f"{side}_attention_heads")
    head_dim = config.head_dim("d_model", f"{side}_attention_heads")
    attention = Attention(num_heads, num_heads, head_dim, head_dim**-0.5, causal=side == "decoder")
    mlp = Mlp(config.integer(f"{side}_ffn_dim"), config.activation("activation_function", default="gelu"))
    cross = Attention(num_heads, num_heads, head_dim, head_dim**-0.5, causal=False) if side == "decoder" else None
    return DecoderSpec(
        layers=(Layer(attention, mlp, "post_norm", cross=cross),) * config.integer(f"{side}_layers"),
        norm=Norm("layer", 1e-5),
        hidden_size=hidden_size,
        positions=Learned(num_positions),
        tied=config.flag("tie_word_embeddings", default=True),
        embed_scale=math.sqrt(hidden_size) if config.flag("scale_embedding", default=False) else 1.0,
    )


@architecture("BartForConditionalGeneration", "BartModel", examples="BART, BART-CNN, BART-XSum")
def bart(config: ConfigReader, architecture: str) -> Resolved:
    num_positions = config.integer("max_position_embeddings")
    spec = ModelSpec(
        architecture,
        _read_stack(config, "decoder", num_positions),
        config.integer("vocab_size"),
        config.context(num_positions),
        _read_stack(config, "encoder", num_positions),
        num_positions,
    )
    return Resolved(spec, _RULES, _EXTRAS)
