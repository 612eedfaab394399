"""Solar Pro (Upstage, 2024): Llama whose stream is mixed with what it was some layers before."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import Skip


@architecture("SolarForCausalLM", examples="Solar Pro Preview 22B")
def solar(config: ConfigReader, architecture: str) -> Resolved:
    # Its sliding_window has no effect, as in vLLM.
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    spec = read_model(config, architecture, mixers)
    decoder = dataclasses.replace(
        spec.decoder,
        skips=(*_skips(config, "bskcn_1", "bskcn_3"), *_skips(config, "bskcn_2", "bskcn_4")),
        logit_scale=config.number("logit_scale", default=1.0),
    )
    return Resolved(dataclasses.replace(spec, decoder=decoder), LLAMA_RULES, GATE)


def _skips(config: ConfigReader, starts_key: str, ends_key: str) -> list[Skip]:
    """From the last start at or before each end."""
    starts, ends = _layers(config, starts_key), _layers(config, ends_key)
    weight = config("bskcn_tv")
    if not isinstance(weight, list) or len(weight) != 2 or not all(isinstance(w, (int, float)) for w in weight):
        raise config.wrong(("bskcn_tv",), weight, "two numbers, for training and for inference")
    skips = []
    for end in ends:
        before = [start for start in starts if start <= end]
        if not before:
            raise config.wrong((ends_key,), ends, f"layers at or after the first of {starts_key}, {starts}")
        skips.append(Skip(max(before), end, float(weight[1])))
    return skips


def _layers(config: ConfigReader, key: str) -> list[int]:
    num_layers, layers = config.integer("num_hidden_layers"), config(key)
    if not isinstance(layers, list) or not all(isinstance(i, int) and 0 <= i < num_layers for i in layers):
        raise config.wrong((key,), layers, f"a list of layers below {num_layers}")
    return layers
