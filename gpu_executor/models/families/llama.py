"""Llama (Touvron et al., 2023; "The Llama 3 Herd of Models", 2024): pre-norm, RoPE, grouped queries, gated MLP.

Its parts serve every family that differs from it in a few facts.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_context, read_rope, rotary_dim
from gpu_executor.models.rules import Rule, permute_rope, rename, skip
from gpu_executor.models.spec import (
    Attention,
    DecoderSpec,
    FeedForward,
    Layer,
    Mixer,
    Mlp,
    ModelSpec,
    Norm,
    Residual,
    Rope,
)

# Hub files name everything below "model."; bare decoders were also saved without it.
MODEL, LAYER = r"(?:model\.)?", r"(?:model\.)?layers\.(\d+)\."
EMBEDDINGS: tuple[Rule, ...] = (
    rename(MODEL + r"embed_tokens\.weight", "embed.weight"),
    rename(r"lm_head\.weight", "head.weight", optional=True),  # not there, or there again, where the head is tied
    skip(MODEL + r"(?:layers\.\d+\.self_attn\.)?rotary_emb\.(?:inv_freq|cos_cached|sin_cached)"),
)
NORMS: tuple[Rule, ...] = (
    rename(LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),
    rename(MODEL + r"norm\.weight", "norm.weight"),
)
PROJECTIONS = rename(LAYER + r"self_attn\.([qkvo])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3")
MLP = rename(LAYER + r"mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2.\3")
STEM_RULES: tuple[Rule, ...] = (*EMBEDDINGS, *NORMS, PROJECTIONS)  # all but the feed-forward layers
LLAMA_RULES: tuple[Rule, ...] = (*STEM_RULES, MLP)
GATE = every_layer("mlp.gate.weight")
_KINDS = {"full_attention": False, "sliding_attention": True}


def projections_of_neighbours(attention: Attention) -> tuple[Rule, ...]:
    """PROJECTIONS of heads whose neighbours (2i, 2i + 1) rotate."""
    rope_dim = attention.positions.dim if isinstance(attention.positions, Rope) else 0
    return (
        permute_rope(
            LAYER + r"self_attn\.([qk])_proj\.(weight|bias)",
            r"layers.\1.mixer.\2.\3",
            head_dim=attention.head_dim,
            rope_dim=rope_dim,
        ),
        rename(LAYER + r"self_attn\.([vo])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
    )


def read_attention(config: ConfigReader, *, window: int | None = None) -> Attention:
    """Attention of a Llama-like config."""
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong(("num_key_value_heads",), num_kv_heads, f"a divisor of {num_heads}, num_attention_heads")
    head_dim = config.integer("head_dim", default=None) or config.head_dim("hidden_size", "num_attention_heads")
    rope = read_rope(config, rotary_dim(config, head_dim))
    causal = config.flag("is_causal", default=True)  # false in some models that embed
    return Attention(num_heads, num_kv_heads, head_dim, head_dim**-0.5, rope, window, causal=causal)


def read_mlp(config: ConfigReader) -> Mlp:
    """The feed-forward layer of a Llama-like config."""
    return Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="silu"))


def read_model(
    config: ConfigReader,
    architecture: str,
    mixers: Sequence[Mixer],
    *,
    norm: Norm | None = None,
    mlp: FeedForward | None = None,
    mlps: Sequence[FeedForward] | None = None,
    residual: Residual = "sequential",
    residual_scale: float = 1.0,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> ModelSpec:
    """A Llama-like model with these mixers, and with `mlp` in every layer or one of `mlps` in each."""
    if mlps is None:
        mlps = [mlp or read_mlp(config)] * len(mixers)
    decoder = DecoderSpec(
        layers=tuple(Layer(*parts, residual, residual_scale) for parts in zip(mixers, mlps, strict=True)),
        norm=norm or Norm("rms", config.number("rms_norm_eps", default=1e-6)),
        hidden_size=config.integer("hidden_size"),
        tied=config.flag("tie_word_embeddings", default=False),
        embed_scale=embed_scale,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
    )
    return ModelSpec(architecture, decoder, config.integer("vocab_size"), read_context(config))


def read_biases(config: ConfigReader) -> tuple[str, ...]:
    """The biases that attention_bias and mlp_bias announce."""
    biases: tuple[str, ...] = ()
    if config.flag("attention_bias", default=False):
        biases += every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")
    if config.flag("mlp_bias", default=False):
        biases += every_layer("mlp.gate.bias", "mlp.up.bias", "mlp.down.bias")
    return biases


def read_window(config: ConfigReader) -> int | None:
    """The window of layers that have one: 4,096 where config.json does not say, none at all where it says null."""
    return config.integer("sliding_window", default=None if config.has("sliding_window") else 4096)


def read_windows(config: ConfigReader, default: list[bool]) -> list[bool]:
    """Which layers have the window: what newer configs list in layer_types, else the default, one for each layer."""
    kinds = config("layer_types", default=None)
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != len(default) or not set(kinds) <= _KINDS.keys():
        raise config.wrong(("layer_types",), kinds, f"{len(default)} of {', '.join(_KINDS)}")
    return [_KINDS[kind] for kind in kinds]


def full_layers(config: ConfigReader) -> ConfigReader:
    """The config as layers without a window see it, in families that scale the rope of those alone.

    Newer configs have a section of rope_parameters for each kind of layer.
    """
    parameters = config.section("rope_parameters").section("full_attention").data
    return config.updated({"rope_parameters": parameters or None})


def sliding_layers(config: ConfigReader, theta: float | None = None) -> ConfigReader:
    """The config as layers with a window see it in those families: no scaling, and a theta of their own if there is one."""
    parameters = config.section("rope_parameters").section("sliding_attention").data
    return config.updated({"rope_parameters": parameters or None, "rope_scaling": {}, "rope_theta": theta})


@architecture("LlamaForCausalLM", "LLaMAForCausalLM", examples="Llama 3.1, Llama 3, Llama 2, Yi, SmolLM")
@architecture("LlamaModel", tasks=("embed",), examples="Llama embeddings")
def llama(config: ConfigReader, architecture: str) -> Resolved:
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, GATE + read_biases(config))
