"""Falcon (Almazrouei et al., 2023): 7B and 40B with RoPE and parallel branches, 1B "RW" with ALiBi, one branch after the other.

ALiBi is added before the scores are divided by sqrt(K), so the slopes are divided here. The official code has slopes and
their products with positions in bfloat16; here the slopes are rounded so, the products are exact.
"""

from __future__ import annotations

import torch

from gpu_executor.models.alibi import make_alibi
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_context, read_rope
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Alibi, Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm, Rope

_MODEL, _LAYER = r"(?:transformer\.)?", r"(?:transformer\.)?h\.(\d+)\."
_BIASES = ("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "mlp.up.bias", "mlp.down.bias")


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(_MODEL + r"word_embeddings\.weight", "embed.weight"),
        rename(_LAYER + r"(?:input_layernorm|ln_attn)\.(weight|bias)", r"layers.\1.norm1.\2"),
        # The layout of all sizes: 7B is one group, and RW has as many as heads.
        split_qkv(
            _LAYER + r"self_attention\.query_key_value\.(weight|bias)",
            r"layers.\1.mixer.{}.\2",
            attention,
            layout="grouped",
        ),
        rename(_LAYER + r"self_attention\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"(?:post_attention_layernorm|ln_mlp)\.(weight|bias)", r"layers.\1.norm2.\2", optional=True),
        rename(_LAYER + r"mlp\.dense_h_to_4h\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(_LAYER + r"mlp\.dense_4h_to_h\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(_MODEL + r"ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(_LAYER + r"self_attention\.(?:rotary|maybe_rotary|rotary_emb)\.inv_freq"),
    )


@architecture("FalconForCausalLM", "RWForCausalLM", examples="Falcon 2 11B, Falcon 40B, Falcon 7B")
def falcon(config: ConfigReader, architecture: str) -> Resolved:
    # The first releases (RW: "refined web") have other names, and n_head_kv in the 40B alone.
    config = config.with_defaults(new_decoder_architecture=config.has("n_head_kv"), max_position_embeddings=2048)
    grouped = config.flag("new_decoder_architecture", default=False)
    parallel = grouped or config.flag("parallel_attn", default=True)
    two_norms = not parallel or (grouped and config.integer("num_ln_in_parallel_attn", default=2) == 2)
    attention = _read_attention(config, grouped)
    mlp = Mlp(
        config.integer("ffn_hidden_size", default=4 * config.integer("n_embed", "hidden_size")),
        config.activation("activation", default="gelu"),
    )
    decoder = DecoderSpec(
        layers=(Layer(attention, mlp, "parallel" if parallel else "sequential"),)
        * config.integer("n_layer", "num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=config.integer("n_embed", "hidden_size"),
        tied=config.flag("tie_word_embeddings", default=True),
    )
    extras = (
        "norm.bias",
        *every_layer("norm1.bias"),
        *(every_layer("norm2.weight", "norm2.bias") if two_norms else ()),
    )
    if config.flag("bias", default=False):
        extras += every_layer(*_BIASES)
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), read_context(config))
    return Resolved(spec, _rules(attention), extras)


def _read_attention(config: ConfigReader, grouped: bool) -> Attention:
    num_heads = config.integer("n_head", "num_attention_heads")
    head_dim = config.head_dim("n_embed", "n_head")
    num_kv_heads = num_heads
    if grouped:
        num_kv_heads = config.integer("n_head_kv", "num_kv_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise config.wrong(("num_kv_heads",), num_kv_heads, f"a divisor of {num_heads}, num_attention_heads")
    elif config.flag("multi_query", default=True):
        num_kv_heads = 1
    scale = head_dim**-0.5
    positions: Rope | Alibi
    if config.flag("alibi", default=False):
        rounded = torch.tensor(make_alibi(num_heads).slopes).bfloat16().tolist()
        positions = Alibi(tuple(slope * scale for slope in rounded))
    else:
        positions = read_rope(config, head_dim)
    return Attention(num_heads, num_kv_heads, head_dim, scale, positions)
