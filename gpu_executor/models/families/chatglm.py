"""ChatGLM2, ChatGLM3, GLM-4 and GLM-4V (Zeng et al., 2024): half of each head rotates, in pairs of neighbours."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.glm4v import with_vision
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_gate_up, split_qkv
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, Mlp, ModelSpec, Norm, Rope

_LAYER = r"(?:transformer\.)?encoder\.layers\.(\d+)\."


def _rules(attention: Attention, rope_dim: int) -> tuple[Rule, ...]:
    return (
        rename(r"(?:transformer\.)?embedding\.word_embeddings\.weight", "embed.weight"),
        rename(_LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
        split_qkv(
            _LAYER + r"self_attention\.query_key_value\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention,
            neighbours=rope_dim,
        ),
        rename(_LAYER + r"self_attention\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
        split_gate_up(_LAYER + r"mlp\.dense_h_to_4h\.(weight|bias)", r"layers.\1.mlp.{}.\2"),
        rename(_LAYER + r"mlp\.dense_4h_to_h\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(r"(?:transformer\.)?encoder\.final_layernorm\.(weight|bias)", r"norm.\1"),
        rename(r"(?:transformer\.)?output_layer\.weight", "head.weight", optional=True),
        skip(r"(?:transformer\.)?rotary_pos_emb\.inv_freq"),
    )  # fmt: skip


@architecture(
    "ChatGLMModel",
    "ChatGLMForConditionalGeneration",
    inputs=("text", "image"),
    examples="GLM-4 9B, GLM-4V 9B, ChatGLM3 6B, ChatGLM2 6B, CodeGeeX4",
)
def chatglm(config: ConfigReader, architecture: str) -> Resolved:
    for key in ("multi_query_attention", "post_layer_norm"):
        if not config.flag(key, default=True):
            raise config.wrong((key,), False, "true, as in all released models")
    attention = _attention(config)
    normed = config.flag("apply_residual_connection_post_layernorm", default=False)
    layer = Layer(attention, Mlp(config.integer("ffn_hidden_size")), "normed" if normed else "sequential")
    rms = config.flag("rmsnorm", default=True)
    decoder = DecoderSpec(
        layers=(layer,) * config.integer("num_layers", "num_hidden_layers"),
        norm=Norm("rms" if rms else "layer", config.number("layernorm_epsilon", default=1e-5)),
        hidden_size=config.integer("hidden_size"),
        tied=config.flag("tie_word_embeddings", default=False),
    )
    context = config.context(config.integer("seq_length"))
    spec = ModelSpec(architecture, decoder, config.integer("padded_vocab_size", "vocab_size"), context)
    text = Resolved(spec, _rules(attention, attention.positions.dim), _extras(config, rms))
    return with_vision(config, text) if config.section("vision_config").data else text


def _attention(config: ConfigReader) -> Attention:
    num_heads, num_kv_heads = config.integer("num_attention_heads"), config.integer("multi_query_group_num")
    if num_heads % num_kv_heads:
        raise config.wrong(("multi_query_group_num",), num_kv_heads, f"a divisor of {num_heads}, num_attention_heads")
    head_dim = config.integer("kv_channels", default=None) or config.head_dim("hidden_size", "num_attention_heads")
    rope = Rope(head_dim // 2, 10000.0 * config.number("rope_ratio", default=1.0))
    return Attention(num_heads, num_kv_heads, head_dim, head_dim**-0.5, rope)


def _extras(config: ConfigReader, rms: bool) -> tuple[str, ...]:
    extras = ["mlp.gate.weight"]
    linear_biases = config.flag("add_bias_linear", default=False)
    if linear_biases or config.flag("add_qkv_bias", default=False):
        extras += ["mixer.q.bias", "mixer.k.bias", "mixer.v.bias"]
    if linear_biases:
        extras += ["mixer.o.bias", "mlp.gate.bias", "mlp.up.bias", "mlp.down.bias"]
    return every_layer(*extras) if rms else (*every_layer(*extras, "norm1.bias", "norm2.bias"), "norm.bias")
