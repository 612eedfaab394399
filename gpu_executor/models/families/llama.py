"""Llama (Touvron et al., 2023; "The Llama 3 Herd of Models", 2024): pre-norm, RoPE, grouped queries, gated MLP.

Its parts serve every family that differs from it in a few facts.
"""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_context, read_rope
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
GATE = every_layer("mlp.gate.weight")


def read_attention(config: ConfigReader, *, window: int | None = None) -> Attention:
    """Attention of a Llama-like config."""
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong(("num_key_value_heads",), num_kv_heads, f"a divisor of {num_heads}, num_attention_heads")
    head_dim = config.integer("head_dim", default=None) or config.head_dim("hidden_size", "num_attention_heads")
    return Attention(num_heads, num_kv_heads, head_dim, head_dim**-0.5, read_rope(config, head_dim), window)


def read_model(config: ConfigReader, architecture: str, mixers: list[Attention]) -> ModelSpec:
    """A Llama-like model with these mixers."""
    mlp = Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="silu"))
    decoder = DecoderSpec(
        layers=tuple(Layer(mixer, mlp) for mixer in mixers),
        norm=Norm("rms", config.number("rms_norm_eps", default=1e-6)),
        hidden_size=config.integer("hidden_size"),
        tied=config.flag("tie_word_embeddings", default=False),
    )
    return ModelSpec(architecture, decoder, config.integer("vocab_size"), read_context(config))


@architecture("LlamaForCausalLM", "LLaMAForCausalLM", examples="Llama 3.1, Llama 3, Llama 2, Yi, SmolLM")
def llama(config: ConfigReader, architecture: str) -> Resolved:
    extras = GATE
    if config.flag("attention_bias", default=False):
        extras += every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")
    if config.flag("mlp_bias", default=False):
        extras += every_layer("mlp.gate.bias", "mlp.up.bias", "mlp.down.bias")
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, extras)
