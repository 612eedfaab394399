"""StarCoder2 (Lozhkov et al., 2024): Llama with LayerNorm, biases, an MLP without gate, and a window in every layer."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import EMBEDDINGS, LAYER, MODEL, PROJECTIONS, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Mlp, Norm

_RULES = (
    *EMBEDDINGS,
    PROJECTIONS,
    rename(LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
    rename(LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
    rename(LAYER + r"mlp\.c_fc\.(weight|bias)", r"layers.\1.mlp.up.\2"),
    rename(LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
    rename(MODEL + r"norm\.(weight|bias)", r"norm.\1"),
)
_BIASES = ("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "mlp.up.bias", "mlp.down.bias")


@architecture("Starcoder2ForCausalLM", examples="StarCoder2")
def starcoder2(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(tie_word_embeddings=True)
    attention = read_attention(config, window=config.integer("sliding_window", default=None))
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("norm_epsilon", default=1e-5)),
        mlp=Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="gelu_pytorch_tanh")),
    )
    biases = _BIASES if config.flag("use_bias", default=True) else ()
    return Resolved(spec, _RULES, ("norm.bias", *every_layer("norm1.bias", "norm2.bias", *biases)))
