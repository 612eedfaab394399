"""InternLM (Shanghai AI Laboratory, 2023): Llama with biases in attention; theta may lie in an object of its own."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture

_BIASES = every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")


@architecture("InternLMForCausalLM", examples="InternLM 7B, InternLM 20B")
def internlm(config: ConfigReader, architecture: str) -> Resolved:
    # Where `rotary` says "dynamic", its theta grows beyond max_position_embeddings only, which nobody can ask for here.
    config = config.updated({"rope_theta": config.section("rotary").number("base", default=None)})
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    extras = GATE + _BIASES if config.flag("bias", default=True) else GATE
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, extras)
