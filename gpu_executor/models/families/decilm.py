"""DeciLM (Deci, 2023) and Llama-Nemotron (Bercovich et al., 2025): Llama, each layer as a search left it."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import Attention, Layer, Mlp, ModelSpec

_ATTENTION_BIASES = every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias")
_MLP_BIASES = every_layer("mlp.gate.bias", "mlp.up.bias", "mlp.down.bias")
_UNSERVED = ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens")  # no released model has them


@architecture("DeciLMForCausalLM", examples="Llama-3.3-Nemotron-Super 49B, Llama-3.1-Nemotron-Ultra 253B, DeciLM 7B")
def decilm(config: ConfigReader, architecture: str) -> Resolved:
    extras = GATE
    if config.flag("attention_bias", default=False):
        extras += _ATTENTION_BIASES
    if config.flag("mlp_bias", default=False):
        extras += _MLP_BIASES
    spec = _searched(config, architecture) if config.has("block_configs") else _grouped(config, architecture)
    return Resolved(spec, LLAMA_RULES, extras)


def _grouped(config: ConfigReader, architecture: str) -> ModelSpec:
    """DeciLM: the layers differ in their number of kv heads."""
    num_layers = config.integer("num_hidden_layers")
    counts = config("num_key_value_heads_per_layer", default=None)
    if counts is None:
        counts = [config("num_key_value_heads", default=None)] * num_layers
    if not isinstance(counts, list) or len(counts) != num_layers:
        raise config.wrong(("num_key_value_heads_per_layer",), counts, f"a list of {num_layers} numbers")
    return read_model(config, architecture, [_attention(config, count) for count in counts])


def _searched(config: ConfigReader, architecture: str) -> ModelSpec:
    """Nemotron: layers also differ in the size of their MLP, and attention or MLP may be absent."""
    num_layers = config.integer("num_hidden_layers")
    blocks = config("block_configs")
    if not isinstance(blocks, list) or len(blocks) != num_layers or not all(isinstance(b, dict) for b in blocks):
        raise config.wrong(("block_configs",), blocks, f"a list of {num_layers} objects")
    layers = []
    for index, block in enumerate(blocks):
        reader = ConfigReader(block, where=f"block_configs[{index}] of config.json")
        layers.append(Layer(_mixer(config, reader.section("attention")), _mlp(config, reader.section("ffn"))))
    spec = read_model(config.updated({"intermediate_size": 1}), architecture, [])
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, layers=tuple(layers)))


def _mixer(config: ConfigReader, part: ConfigReader) -> Attention | None:
    _refuse_unserved(part)
    if part.flag("no_op", default=False):
        return None
    num_heads, group = config.integer("num_attention_heads"), part.integer("n_heads_in_group")
    if num_heads % group:
        raise part.wrong(("n_heads_in_group",), group, f"a divisor of {num_heads}, num_attention_heads")
    return _attention(config, num_heads // group)


def _mlp(config: ConfigReader, part: ConfigReader) -> Mlp | None:
    _refuse_unserved(part)
    if part.flag("no_op", default=False):
        return None
    size = part.integer("intermediate_size", default=None)
    if size is None:
        size = -(-int(2 * part.number("ffn_mult") * config.integer("hidden_size") / 3) // 256) * 256
    return Mlp(size, config.activation("hidden_act", default="silu"))


def _attention(config: ConfigReader, num_kv_heads: int | None) -> Attention:
    return read_attention(config.updated({"num_key_value_heads": num_kv_heads}))


def _refuse_unserved(part: ConfigReader) -> None:
    for key in _UNSERVED:
        if part(key, default=False):
            raise part.wrong((key,), part(key), "null or false, as in all released models")
