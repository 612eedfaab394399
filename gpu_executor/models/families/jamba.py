"""Jamba (Lieber et al., 2024): state spaces with attention in some layers and experts in others; no positions at all."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.mamba import check_activation, mixer_extras, mixer_rules, read_mixer
from gpu_executor.models.heads import with_score
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Moe, Norm

_LAYER = r"(?:model\.)?layers\.(\d+)\."
# Which kinds of layers there are is config.json's to say: a tensor that is missing is named all the same.
_RULES: tuple[Rule, ...] = (
    rename(r"(?:model\.)?embed_tokens\.weight", "embed.weight"),
    rename(_LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(_LAYER + r"self_attn\.([qkvo])_proj\.weight", r"layers.\1.mixer.\2.weight", optional=True),
    *mixer_rules(_LAYER + r"mamba\."),
    rename(_LAYER + r"mamba\.(dt|b|c)_layernorm\.weight", r"layers.\1.mixer.\2_norm.weight"),
    rename(_LAYER + r"pre_ff_layernorm\.weight", r"layers.\1.norm2.weight"),
    rename(_LAYER + r"feed_forward\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.\2.weight", optional=True),
    rename(_LAYER + r"feed_forward\.router\.weight", r"layers.\1.mlp.router.weight", optional=True),
    rename(
        _LAYER + r"feed_forward\.experts\.(\d+)\.(gate|up|down)_proj\.weight",
        r"layers.\1.mlp.experts.\2.\3.weight",
        optional=True,
    ),
    rename(r"(?:model\.)?final_layernorm\.weight", "norm.weight"),
    rename(r"lm_head\.weight", "head.weight", optional=True),
)


def _recurs(config: ConfigReader, kind: str, period: int, offset: int) -> list[bool]:
    """Which layers are of a kind: one in each period, at the offset."""
    period = config.integer(f"{kind}_layer_period", default=period)
    offset = config(f"{kind}_layer_offset", default=offset)
    if not isinstance(offset, int) or not 0 <= offset < period:
        raise config.wrong((f"{kind}_layer_offset",), offset, f"a whole number below the period, {period}")
    return [index % period == offset for index in range(config.integer("num_hidden_layers"))]


@architecture("JambaForCausalLM", examples="Jamba 1.5, Jamba Reasoning 3B")
def jamba(config: ConfigReader, architecture: str) -> Resolved:
    check_activation(config)
    hidden_size, head_dim = config.integer("hidden_size"), config.head_dim("hidden_size", "num_attention_heads")
    norm = Norm("rms", config.number("rms_norm_eps", default=1e-6))
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads if config.has("num_key_value_heads") else 8)
    attention = Attention(num_heads, num_kv_heads, head_dim, head_dim**-0.5)
    mamba = read_mixer(config, hidden_size, norm=norm)
    size, num_experts = config.integer("intermediate_size"), config.integer("num_experts", default=16)
    mlp, moe = Mlp(size), Mlp(size)
    if num_experts > 1:
        moe = Moe(num_experts, config.integer("num_experts_per_tok", default=2), size, renormalize=False)
    kinds = zip(_recurs(config, "attn", 8, 4), _recurs(config, "expert", 2, 1), strict=True)
    decoder = DecoderSpec(
        layers=tuple(Layer(attention if attends else mamba, moe if routes else mlp) for attends, routes in kinds),
        norm=norm,
        hidden_size=hidden_size,
        tied=config.flag("tie_word_embeddings", default=False),
    )
    extras = mixer_extras(
        bias=config.flag("mamba_proj_bias", default=False), conv_bias=config.flag("mamba_conv_bias", default=True)
    )
    context = config.context(config.integer("max_position_embeddings", default=262144))
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), context)
    return Resolved(spec, _RULES, extras + every_layer("mlp.gate.weight"))


@architecture("JambaForSequenceClassification", tasks=("classify", "score"), examples="Jamba classifiers")
def jamba_classifier(config: ConfigReader, architecture: str) -> Resolved:
    return with_score(jamba(config, architecture), config)
