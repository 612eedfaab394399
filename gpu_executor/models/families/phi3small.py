"""Phi-3-small (Abdin et al., 2024): muP scales, a clamped gate, and attention that is sparse in most layers."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_context, read_rope
from gpu_executor.models.rules import Rule, rename, skip, split_gate_up, split_qkv
from gpu_executor.models.spec import Attention, BlockSparseAttention, DecoderSpec, Layer, Mlp, ModelSpec, Norm, Rope

_LAYER = r"(?:model\.)?layers\.(\d+)\."
_EXTRAS = ("norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.gate.weight",
    "mlp.gate.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(r"(?:model\.)?embed_tokens\.weight", "embed.weight"),
        rename(_LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
        split_qkv(
            _LAYER + r"self_attn\.query_key_value\.(weight|bias)",
            r"layers.\1.mixer.{}.\2",
            attention,
            layout="grouped",
        ),
        rename(_LAYER + r"self_attn\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
        split_gate_up(_LAYER + r"mlp\.up_proj\.(weight|bias)", r"layers.\1.mlp.{}.\2", interleaved=True),
        rename(_LAYER + r"mlp\.down_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(r"(?:model\.)?final_layernorm\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(_LAYER + r"self_attn\.rotary_emb\.inv_freq"),
    )


@architecture("Phi3SmallForCausalLM", examples="Phi-3-small 8k, Phi-3-small 128k")
def phi3small(config: ConfigReader, architecture: str) -> Resolved:
    if config("hidden_act", default="gegelu") != "gegelu":
        raise config.wrong(("hidden_act",), config("hidden_act"), "'gegelu', as in all released models")
    attention = _attention(config)
    sparse = _sparse(config, attention)
    every = config.integer("dense_attention_every_n_layers", default=1)
    num_layers = config.integer("num_hidden_layers")
    mlp = Mlp(_mlp_size(config), "gegelu", config.number("gegelu_limit", default=float("inf")))
    decoder = DecoderSpec(
        layers=tuple(Layer(attention if (i + 1) % every == 0 else sparse, mlp) for i in range(num_layers)),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=config.integer("hidden_size"),
        tied=config.flag("tie_word_embeddings", default=True),
        embed_scale=config.number("mup_embedding_multiplier", default=1.0),
        logit_scale=1 / config.number("mup_width_multiplier", default=1.0),
        masked_ids=tuple(config("dummy_token_indices", default=())),
    )
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), read_context(config))
    return Resolved(spec, _rules(attention), _EXTRAS)


def _attention(config: ConfigReader) -> Attention:
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong(("num_key_value_heads",), num_kv_heads, f"a divisor of {num_heads}, num_attention_heads")
    head_dim = config.head_dim("hidden_size", "num_attention_heads")
    scale = head_dim**-0.5
    if config.flag("mup_use_scaling", default=True):
        scale = config.number("mup_attn_multiplier", default=1.0) / head_dim
    return Attention(num_heads, num_kv_heads, head_dim, scale, _rope(config, head_dim))


def _rope(config: ConfigReader, head_dim: int) -> Rope:
    """rope_position_scale stretches positions where there is no rope_scaling, which may name its magnitudes."""
    values = {"rope_theta": config.number("rope_embedding_base", default=1e6)}
    if not config.section("rope_scaling").data:
        factor = config.number("rope_position_scale", default=1.0)
        values["rope_scaling"] = {"type": "linear", "factor": factor} if factor != 1 else None
    return read_rope(config.updated(values), head_dim)


def _sparse(config: ConfigReader, attention: Attention) -> BlockSparseAttention:
    stride = config.integer("blocksparse_vert_stride")
    alike = config.flag("blocksparse_homo_head_pattern", default=False)
    return BlockSparseAttention(
        attention,
        sparse_block_size=config.integer("blocksparse_block_size"),
        num_local_blocks=config.integer("blocksparse_num_local_blocks"),
        stride=stride,
        head_step=0 if alike else max(1, stride // attention.num_heads),
    )


def _mlp_size(config: ConfigReader) -> int:
    size = config.integer("ff_intermediate_size", default=None)
    return size or int(config.number("ff_dim_multiplier") * config.integer("hidden_size"))
