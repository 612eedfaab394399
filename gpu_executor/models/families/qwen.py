"""Qwen and Qwen-VL (Bai et al., 2023): Llama with biases on queries, keys and values, under GPT-2's tensor names."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_model
from gpu_executor.models.families.qwen_vl import with_visual
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_rope
from gpu_executor.models.rules import Rule, rename, skip, split_qkv
from gpu_executor.models.spec import Attention

_LAYER = r"(?:transformer\.)?h\.(\d+)\."
_QKV_BIASES = every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")
_OTHER_BIASES = every_layer("mixer.o.bias", "mlp.gate.bias", "mlp.up.bias", "mlp.down.bias")


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(r"(?:transformer\.)?wte\.weight", "embed.weight"),
        rename(_LAYER + r"ln_([12])\.weight", r"layers.\1.norm\2.weight"),
        split_qkv(_LAYER + r"attn\.c_attn\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention),
        rename(_LAYER + r"attn\.c_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"mlp\.w2\.(weight|bias)", r"layers.\1.mlp.gate.\2"),
        rename(_LAYER + r"mlp\.w1\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(_LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(r"(?:transformer\.)?ln_f\.weight", "norm.weight"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
        skip(r"(?:transformer\.)?(?:h\.\d+\.attn\.)?(?:rotary_emb\.inv_freq|masked_bias)"),
    )


@architecture("QWenLMHeadModel", inputs=("text", "image"), examples="Qwen 1.8B to 72B, Qwen-VL")
def qwen(config: ConfigReader, architecture: str) -> Resolved:
    num_heads = config.integer("num_attention_heads")
    head_dim = config.integer("kv_channels", default=None) or config.head_dim("hidden_size", "num_attention_heads")
    rope = read_rope(
        config.updated({"rope_theta": config.number("rotary_emb_base", default=None)}),
        int(head_dim * config.number("rotary_pct", default=1.0)),
    )
    attention = Attention(num_heads, num_heads, head_dim, head_dim**-0.5, rope)
    # Beyond seq_length the model's own code scales queries by log n and lets theta grow with each request.
    config = config.updated(
        {
            "intermediate_size": config.integer("intermediate_size") // 2,  # of gate and up together
            "rms_norm_eps": config.number("layer_norm_epsilon", default=1e-6),
            "max_position_embeddings": config.integer("seq_length", "max_position_embeddings"),
        }
    )
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    extras = GATE + _QKV_BIASES
    if not config.flag("no_bias", default=True):
        extras += _OTHER_BIASES
    text = Resolved(spec, _rules(attention), extras)
    return with_visual(config, text) if config.section("visual").data else text
