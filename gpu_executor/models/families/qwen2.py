"""Qwen2 (Yang et al., 2024): Llama with biases on queries, keys and values; the upper layers may have a window.

Qwen3 (2025) norms each head of queries and keys, and has biases only where config.json says so.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    GATE,
    LAYER,
    LLAMA_RULES,
    read_attention,
    read_biases,
    read_model,
    read_window,
    read_windows,
)
from gpu_executor.models.heads import with_classifier, with_score
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Attention, Classifier, Pooling

_QWEN3_RULES = (
    *LLAMA_RULES,
    rename(LAYER + r"self_attn\.([qk])_norm\.weight", r"layers.\1.mixer.\2_norm.weight"),
)
_EXTRA_0 = 151651  # the token that ends a step for the process reward models, unless the operator names another
_EXTRAS = GATE + every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")


def read_mixers(config: ConfigReader) -> list[Attention]:
    """The mixers of a Qwen2-like config, one for each layer."""
    window = None
    if config.flag("use_sliding_window", default=False):
        window = read_window(config)
    full, sliding = read_attention(config), read_attention(config, window=window)
    num_full = config("max_window_layers", default=28)  # and the layers from there on have the window
    windows = read_windows(config, [i >= num_full for i in range(config.integer("num_hidden_layers"))])
    return [sliding if slides else full for slides in windows]


@architecture("Qwen2ForCausalLM", examples="Qwen2.5, Qwen2, QwQ")
@architecture("Qwen2Model", tasks=("embed",), examples="GTE Qwen2")
def qwen2(config: ConfigReader, architecture: str) -> Resolved:
    return Resolved(read_model(config, architecture, read_mixers(config)), LLAMA_RULES, _EXTRAS)


@architecture("Qwen2ForSequenceClassification", tasks=("classify", "score"), examples="Qwen2.5 classifiers")
def qwen2_classifier(config: ConfigReader, architecture: str) -> Resolved:
    return with_score(qwen2(config, architecture), config)


@architecture("Qwen2ForRewardModel", tasks=("reward",), examples="Qwen2.5 Math RM")
def qwen2_reward(config: ConfigReader, architecture: str) -> Resolved:
    return _with_rewards(qwen2(config, architecture), 1, Pooling("all"))


@architecture("Qwen2ForProcessRewardModel", tasks=("reward",), examples="Qwen2.5 Math PRM")
def qwen2_process_reward(config: ConfigReader, architecture: str) -> Resolved:
    return _with_rewards(qwen2(config, architecture), 2, Pooling("step", _EXTRA_0))


def _with_rewards(resolved: Resolved, num_classes: int, pooling: Pooling) -> Resolved:
    """A head of two layers with ReLU between them."""
    return with_classifier(
        resolved,
        Classifier(num_classes, "relu"),
        rename(r"score\.0\.(weight|bias)", r"dense.\1"),
        rename(r"score\.2\.(weight|bias)", r"score.\1"),
        extras=("dense.weight", "dense.bias", "score.bias"),
        pooling=pooling,
    )


@architecture("Qwen3ForCausalLM", examples="Qwen3")
def qwen3(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(head_dim=128)
    mixers = [dataclasses.replace(mixer, qk_norm="head") for mixer in read_mixers(config)]
    return Resolved(read_model(config, architecture, mixers), _QWEN3_RULES, GATE + read_biases(config))
