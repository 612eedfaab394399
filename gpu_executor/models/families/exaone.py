"""EXAONE 3 and 3.5 (LG AI Research, 2024): Llama under GPT-2's tensor names."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename, skip

_LAYER = r"(?:transformer\.)?h\.(\d+)\."
_RULES = (
    rename(r"(?:transformer\.)?wte\.weight", "embed.weight"),
    rename(_LAYER + r"ln_([12])\.weight", r"layers.\1.norm\2.weight"),
    rename(_LAYER + r"attn\.attention\.([qkv])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
    rename(_LAYER + r"attn\.attention\.out_proj\.(weight|bias)", r"layers.\1.mixer.o.\2"),
    rename(_LAYER + r"mlp\.c_fc_0\.(weight|bias)", r"layers.\1.mlp.gate.\2"),
    rename(_LAYER + r"mlp\.c_fc_1\.(weight|bias)", r"layers.\1.mlp.up.\2"),
    rename(_LAYER + r"mlp\.c_proj\.(weight|bias)", r"layers.\1.mlp.down.\2"),
    rename(r"(?:transformer\.)?ln_f\.weight", "norm.weight"),
    rename(r"lm_head\.weight", "head.weight", optional=True),  # not there where the head is tied
    skip(r"(?:transformer\.)?(?:h\.\d+\.attn\.attention\.)?rotary(?:_emb)?\.inv_freq"),
)


@architecture("ExaoneForCausalLM", examples="EXAONE 3.0 7.8B, EXAONE 3.5 2.4B to 32B")
def exaone(config: ConfigReader, architecture: str) -> Resolved:
    num_layers = config.integer("num_layers", "num_hidden_layers")
    config = config.updated(
        {
            "hidden_act": config("activation_function", default=None),
            "rms_norm_eps": config.number("layer_norm_epsilon", default=1e-5),
        }
    )
    return Resolved(read_model(config, architecture, [read_attention(config)] * num_layers), _RULES, GATE)
