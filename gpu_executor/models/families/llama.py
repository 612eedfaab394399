"""Llama (Touvron et al., 2023; "The Llama 3 Herd of Models", 2024): pre-norm, RoPE, grouped queries, gated MLP.

Its parts serve every family that differs from it in a few facts.
"""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_rope
from gpu_executor.models.rules import Rule, rename, skip
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm

# Hub files name everything below "model."; bare decoders were also saved without it.
LLAMA_RULES: tuple[Rule, ...] = (
    rename(r"(?:model\.)?embed_tokens\.weight", "embed.weight"),
    rename(r"(?:model\.)?layers\.(\d+)\.input_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(r"(?:model\.)?layers\.(\d+)\.self_attn\.([qkvo])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
    rename(r"(?:model\.)?layers\.(\d+)\.post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),
    rename(r"(?:model\.)?layers\.(\d+)\.mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2.\3"),
    rename(r"(?:model\.)?norm\.weight", "norm.weight"),
    rename(r"lm_head\.weight", "head.weight", optional=True),  # not there, or there again, where the head is tied
    skip(r"(?:model\.)?(?:layers\.\d+\.self_attn\.)?rotary_emb\.(?:inv_freq|cos_cached|sin_cached)"),
)
GATED = ("layers.*.mlp.gate.weight",)

# Activation names of configs, and ours.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip


def biases(*projections: str) -> tuple[str, ...]:
    """Names of biases that every layer has."""
    return tuple(f"layers.*.{projection}.bias" for projection in projections)


def read_attention(config: ConfigReader, *, window: int | None = None) -> Attention:
    """Attention of a Llama-like config."""
    num_heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=config.integer("hidden_size") // num_heads)
    return Attention(
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=read_rope(config, head_dim),
        window=window,
    )


def read_model(config: ConfigReader, mixers: list[Attention], *, tied: bool = False) -> ModelSpec:
    """A Llama-like model with these mixers; `tied` is the default where config.json does not say."""
    mlp = Mlp(config.integer("intermediate_size"), ACTIVATIONS[config("hidden_act", default="silu")])
    decoder = DecoderSpec(
        layers=tuple(Layer(mixer, mlp) for mixer in mixers),
        norm=Norm("rms", config("rms_norm_eps", default=1e-6)),
        hidden_size=config.integer("hidden_size"),
        tied=bool(config("tie_word_embeddings", default=tied)),
    )
    context = config.context("max_position_embeddings")
    return ModelSpec(config.architecture, decoder, config.integer("vocab_size"), context)


@architecture("LlamaForCausalLM", "LLaMAForCausalLM", examples="Llama 3.1, Llama 3, Llama 2, Yi, SmolLM")
def llama(config: ConfigReader) -> Resolved:
    extras = GATED
    if config("attention_bias", default=False):
        extras += biases("mixer.q", "mixer.k", "mixer.v", "mixer.o")
    if config("mlp_bias", default=False):
        extras += biases("mlp.gate", "mlp.up", "mlp.down")
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, mixers), LLAMA_RULES, extras)
