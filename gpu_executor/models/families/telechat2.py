"""TeleChat2 (Wang et al., 2024): Llama with biases behind attention and MLP; each head's key lies before its value."""

from __future__ import annotations

import math

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, split_kv
from gpu_executor.models.spec import Attention

_LAYER = r"(?:transformer\.)?h\.(\d+)\."
_EXTRAS = GATE + every_layer("mixer.o.bias", "mlp.down.bias")


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        rename(r"(?:transformer\.)?word_embeddings\.weight", "embed.weight"),
        rename(_LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
        rename(_LAYER + r"self_attention\.query\.(weight|bias)", r"layers.\1.mixer.q.\2"),
        split_kv(_LAYER + r"self_attention\.key_value\.(weight|bias)", r"layers.\1.mixer.{}.\2", attention),
        rename(_LAYER + r"self_attention\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(_LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),
        rename(_LAYER + r"mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2.\3"),
        rename(r"(?:transformer\.)?ln_f\.weight", "norm.weight"),
        rename(r"lm_head\.weight", "head.weight", optional=True),
    )


@architecture("TeleChat2ForCausalLM", examples="TeleChat2 3B to 115B")
def telechat2(config: ConfigReader, architecture: str) -> Resolved:
    for key in ("embed_layernorm", "logn", "apply_residual_connection_post_layernorm"):
        if config.flag(key, default=False):
            raise config.wrong((key,), True, "false")
    head_dim = config.head_dim("hidden_size", "n_head")
    trained = config.integer("training_seqlen", default=None) or config.integer("seq_length")
    config = config.updated(
        {
            "num_attention_heads": config.integer("n_head", "num_attention_heads"),
            "intermediate_size": config.integer("ffn_hidden_size", "intermediate_size"),
            "rms_norm_eps": config.number("layer_norm_epsilon", "rms_norm_eps", default=1e-5),
            "max_position_embeddings": config.integer("seq_length", "max_position_embeddings"),
            "rope_theta": 10000.0 * _stretch(trained, config.integer("base_seqlen", default=trained), head_dim),
        }
    )
    attention = read_attention(config)
    spec = read_model(config, architecture, [attention] * config.integer("n_layer", "num_hidden_layers"))
    return Resolved(spec, _rules(attention), _EXTRAS)


def _stretch(trained: int, base: int, head_dim: int) -> float:
    """What theta grows by where the model was first trained on `base` tokens, and then on more."""
    alpha = max(2 ** math.ceil(math.log2(trained / base) + 1) - 1, 1)
    return alpha ** (head_dim / (head_dim - 2))
