"""MPT (MosaicML, 2023): ALiBi, LayerNorm without bias, no biases in general, projections that may be clamped.

Read as in MosaicML's own code: transformers' class ignores alibi_bias_max, alibi, qk_ln, logit_scale, kv_n_heads and no_bias.
"""

from __future__ import annotations

from gpu_executor.models.alibi import make_alibi
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, split_qkv
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Learned, Mlp, ModelSpec, Norm

_MODEL, _LAYER = r"(?:transformer\.)?", r"(?:transformer\.)?blocks\.(\d+)\."
_BIASES = (
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.up.bias", "mlp.down.bias",
)  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(_MODEL + r"wte\.weight", "embed.weight"),
        rename(_MODEL + r"wpe\.weight", "positions.weight", optional=True),
        rename(_LAYER + r"norm_([12])\.(weight|bias)", r"layers.\1.norm\2.\3"),
        split_qkv(_LAYER + r"attn\.Wqkv\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention),
        rename(_LAYER + r"attn\.([qk])_ln\.(weight|bias)", r"layers.\1.mixer.\2_norm.\3", optional=True),
        rename(_LAYER + r"attn\.out_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"ffn\.(up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2.\3"),
        rename(_MODEL + r"norm_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
    )


@architecture("MPTForCausalLM", "MptForCausalLM", examples="MPT 30B, MPT 7B, MPT-StoryWriter")
def mpt(config: ConfigReader, architecture: str) -> Resolved:
    hidden_size, num_positions = config.integer("d_model"), config.integer("max_seq_len", default=2048)
    attention = _read_attention(config)
    scale = config("logit_scale", default=1.0)
    if scale == "inv_sqrt_d_model":
        scale = hidden_size**-0.5
    elif not isinstance(scale, (int, float)):
        raise config.wrong(("logit_scale",), scale, "a number or inv_sqrt_d_model")
    kind = "rms" if "rmsnorm" in config("norm_type", default="low_precision_layernorm") else "layer"
    learned = attention.positions is None and config.flag("learned_pos_emb", default=True)
    decoder = DecoderSpec(
        layers=(Layer(attention, Mlp(config.integer("expansion_ratio", default=4) * hidden_size, "gelu")),)
        * config.integer("n_layers"),
        norm=Norm(kind, config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        positions=Learned(num_positions) if learned else None,
        tied=config.flag("tie_word_embeddings", default=True),
        logit_scale=float(scale),
    )
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), config.context(num_positions))
    biases = () if config.flag("no_bias", default=True) else ("norm.bias", *every_layer(*_BIASES))
    return Resolved(spec, _rules(attention), biases)


def _read_attention(config: ConfigReader) -> Attention:
    options = config.section("attn_config")
    for name in ("prefix_lm", "rope"):
        if options.flag(name, default=False):
            raise options.wrong((name,), True, "false")
    num_heads, head_dim = config.integer("n_heads"), config.head_dim("d_model", "n_heads")
    num_kv_heads = options.integer("kv_n_heads", default=num_heads)
    if options("attn_type", default="multihead_attention") == "multiquery_attention":
        num_kv_heads = 1
    if num_heads % num_kv_heads:
        raise options.wrong(("kv_n_heads",), num_kv_heads, f"a divisor of {num_heads}, n_heads")
    clip, normed = options.number("clip_qkv", default=None), options.flag("qk_ln", default=False)
    if clip and normed:
        raise options.wrong(("qk_ln",), True, "false where clip_qkv is there")
    alibi = None
    if options.flag("alibi", default=True):
        alibi = make_alibi(num_heads, options.number("alibi_bias_max", default=8.0))
    scale = options.number("softmax_scale", default=head_dim**-0.5)
    return Attention(
        num_heads, num_kv_heads, head_dim, scale, alibi, qk_norm="projection" if normed else None, clip=clip
    )
