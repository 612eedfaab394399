"""Jais (Sengupta et al., 2023): GPT-2 with linear biases (ALiBi), a gated MLP, and scaled embeddings and logits."""

from __future__ import annotations

from gpu_executor.models.alibi import make_alibi
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv, transpose
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm

_LAYER = r"(?:transformer\.)?h\.(\d+)\."
_EXTRAS = ("norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.gate.weight",
    "mlp.gate.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(r"(?:transformer\.)?wte\.weight", "embed.weight"),
        rename(_LAYER + r"ln_([12])\.(weight|bias)", r"layers.\1.norm\2.\3"),
        split_qkv(_LAYER + r"attn\.c_attn\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention, transposed=True),
        transpose(_LAYER + r"attn\.c_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        transpose(_LAYER + r"mlp\.c_fc2\.(weight|bias)", r"layers.\1.mlp.gate.\2"),
        transpose(_LAYER + r"mlp\.c_fc\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        transpose(_LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(r"(?:transformer\.)?ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(r"(?:transformer\.)?(?:relative_pe\.slopes|h\.\d+\.attn\.(?:bias|masked_bias))"),
    )


@architecture("JAISLMHeadModel", examples="Jais 13B, Jais 30B, Jais family 590M to 30B")
def jais(config: ConfigReader, architecture: str) -> Resolved:
    for key, served in (("position_embedding_type", "alibi"), ("activation_function", "swiglu")):
        if config(key) != served:
            raise config.wrong((key,), config(key), f"{served!r}, as in all released models")
    if config("alibi_scaling", default=None) is not None:
        raise config.wrong(("alibi_scaling",), config("alibi_scaling"), "null, as in all released models")
    hidden_size, num_heads = config.integer("n_embd", "hidden_size"), config.integer("n_head", "num_attention_heads")
    head_dim = config.head_dim("n_embd", "n_head")
    by_dim = config.flag("scale_qk_dot_by_d", "mup_scale_qk_dot_by_d", default=False)
    scale = (1 / head_dim if by_dim else head_dim**-0.5) if config.flag("scale_attn_weights", default=True) else 1.0
    attention = Attention(num_heads, num_heads, head_dim, scale, make_alibi(num_heads))
    mlp = Mlp(config.integer("n_inner", default=4 * hidden_size))
    decoder = DecoderSpec(
        layers=(Layer(attention, mlp),) * config.integer("n_layer", "num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        tied=config.flag("tie_word_embeddings", default=True),
        embed_scale=config.number("embeddings_scale", "mup_embeddings_scale", default=1.0),
        logit_scale=_logit_scale(config),
    )
    context = config.context(config.integer("n_positions", "max_position_embeddings"))
    return Resolved(ModelSpec(architecture, decoder, config.integer("vocab_size"), context), _rules(attention), _EXTRAS)


def _logit_scale(config: ConfigReader) -> float:
    """One key in the first models; later ones name its two factors."""
    scale = config.number("width_scale", default=None)
    if scale is not None:
        return scale
    return config.number("mup_output_alpha", default=1.0) * config.number("mup_width_scale", default=1.0)
