"""OPT (Zhang et al., 2022): learned positions, ReLU. The 350M has its norms behind the branches, and a narrow embedding.

Galactica (Taylor et al., 2022) is an OPT without biases, and its larger sizes have norms without weights.
"""

from __future__ import annotations

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, skip
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Learned, Mlp, ModelSpec, Norm

_MODEL, _LAYER = r"(?:model\.)?decoder\.", r"(?:model\.)?decoder\.layers\.(\d+)\."
_BIASES = ("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "mlp.up.bias", "mlp.down.bias")


def without_first_two(positions: torch.Tensor) -> torch.Tensor:
    """(P + 2, D) -> (P, D): fairseq kept two rows for padding, and no token has them."""
    return positions[2:]


_RULES: tuple[Rule, ...] = (
    rename(_MODEL + r"embed_tokens\.weight", "embed.weight"),
    change(_MODEL + r"embed_positions\.weight", "positions.weight", without_first_two),
    rename(_MODEL + r"project_(in|out)\.weight", r"project_\1.weight", optional=True),
    rename(_LAYER + r"self_attn_layer_norm\.(weight|bias)", r"layers.\1.norm1.\2", optional=True),
    rename(_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
    rename(_LAYER + r"self_attn\.out_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
    rename(
        _LAYER + r"final_layer_norm\.(weight|bias)", r"layers.\1.norm2.\2", optional=True
    ),  # the MLP's, not the last
    rename(_LAYER + r"fc1\.(weight|bias)", r"layers.\1.mlp.up.\2"),
    rename(_LAYER + r"fc2\.(weight|bias)", r"layers.\1.mlp.down.\2"),
    rename(_MODEL + r"final_layer_norm\.(weight|bias)", r"norm.\1", optional=True),
    rename(r"lm_head\.weight", "head.weight", optional=True),
    skip(_MODEL + r"version"),  # of fairseq
)


@architecture("OPTForCausalLM", examples="OPT, Galactica")
def opt(config: ConfigReader, architecture: str) -> Resolved:
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.head_dim("hidden_size", "num_attention_heads")
    num_positions = config.integer("max_position_embeddings", default=2048)
    embed_size = config.integer("word_embed_proj_dim", default=hidden_size)
    if config.flag("_remove_final_layer_norm", default=False):
        raise config.wrong(("_remove_final_layer_norm",), True, "false")
    before = config.flag("do_layer_norm_before", default=True)
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    layer = Layer(
        Attention(num_heads, num_heads, head_dim, head_dim**-0.5),
        Mlp(config.integer("ffn_dim"), config.activation("activation_function", default="relu")),
        "sequential" if before else "post_norm",
    )
    decoder = DecoderSpec(
        layers=(layer,) * config.integer("num_hidden_layers"),
        norm=Norm("layer", 1e-5, affine),
        hidden_size=hidden_size,
        positions=Learned(num_positions),
        tied=config.flag("tie_word_embeddings", default=True),
        embed_size=None if embed_size == hidden_size else embed_size,
    )
    extras: tuple[str, ...] = ()
    if affine:
        extras += (*every_layer("norm1.bias", "norm2.bias"), *(("norm.bias",) if before else ()))
    if config.flag("enable_bias", default=True):
        extras += every_layer(*_BIASES)
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), config.context(num_positions))
    return Resolved(spec, _RULES, extras)
