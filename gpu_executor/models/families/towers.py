"""What configs of towers have in common: the activation's name, and keys that the text's section shares with what is around."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.towers.activations import ACTIVATIONS


def read_activation(config: ConfigReader, name: str, *, default: str) -> str:
    """The activation that a key names, one of towers.activations.ACTIVATIONS."""
    value = config(name, default=default)
    ours = value if value in ACTIVATIONS else config.activation(name, default=default)
    if ours not in ACTIVATIONS:
        raise config.wrong((name,), value, f"one of {', '.join(ACTIVATIONS)}")
    return ours


def with_tying(config: ConfigReader, section: str) -> ConfigReader:
    """The config with its own `tie_word_embeddings` in the text's section too, where transformers 5 does not repeat it."""
    if not config.has("tie_word_embeddings") or not config.has(section):
        return config
    tied = {"tie_word_embeddings": config("tie_word_embeddings", default=None)}
    return config.updated({section: config.section(section).with_defaults(**tied).data})
