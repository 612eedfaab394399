"""BLOOM (Le Scao et al., 2022): ALiBi, a LayerNorm behind the embedding, one projection with q, k and v of each head."""

from __future__ import annotations

from gpu_executor.models.alibi import make_alibi
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm

_MODEL, _LAYER = r"(?:transformer\.)?", r"(?:transformer\.)?h\.(\d+)\."  # the official files have no prefix
_EXTRAS = ("embed_norm.weight", "embed_norm.bias", "norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "norm2.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(_MODEL + r"word_embeddings\.weight", "embed.weight"),
        rename(_MODEL + r"word_embeddings_layernorm\.(weight|bias)", r"embed_norm.\1"),
        rename(_LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
        split_qkv(
            _LAYER + r"self_attention\.query_key_value\.(weight|bias)",
            r"layers.\1.mixer.{}.\2",
            attention,
            layout="grouped",
        ),
        rename(_LAYER + r"self_attention\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
        rename(_LAYER + r"mlp\.dense_h_to_4h\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(_LAYER + r"mlp\.dense_4h_to_h\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(_MODEL + r"ln_f\.(weight|bias)", r"norm.\1"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(_LAYER + r"self_attention\.(?:bias|masked_bias)"),
    )


@architecture("BloomForCausalLM", examples="BLOOM, BLOOMZ")
def bloom(config: ConfigReader, architecture: str) -> Resolved:
    hidden_size, num_heads = config.integer("n_embed", "hidden_size"), config.integer("n_head", "num_attention_heads")
    head_dim = config.head_dim("n_embed", "n_head")
    attention = Attention(num_heads, num_heads, head_dim, head_dim**-0.5, make_alibi(num_heads))
    normed = config.flag("apply_residual_connection_post_layernorm", default=False)
    layer = Layer(attention, Mlp(4 * hidden_size, "gelu_tanh"), "normed" if normed else "sequential")
    decoder = DecoderSpec(
        layers=(layer,) * config.integer("n_layer", "num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        hidden_size=hidden_size,
        tied=config.flag("tie_word_embeddings", default=True),
    )
    spec = ModelSpec(
        architecture, decoder, config.integer("vocab_size"), config.context(config.integer("seq_length", default=2048))
    )
    return Resolved(spec, _rules(attention), _EXTRAS)
