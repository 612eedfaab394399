"""Owns the canonical tensor names: what each is for, how it is shared out among devices, and its shape under a spec.

Every checkpoint's tensors end up under these names (see rules.py). Whatever works on weights, loading, sharding,
adapters, quantization, reads this one table.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable

from gpu_executor.models.spec import DecoderSpec, Layer, ModelSpec


class Role(enum.Enum):
    """How tensor parallelism shares a tensor out."""

    COLUMN = "column"  # by output: each device has some rows of (out, in)
    ROW = "row"  # by input: each device has some columns, results are summed
    VOCAB = "vocab"  # by vocabulary
    REPLICATED = "replicated"
    PER_HEAD = "per_head"  # one vector for every head, or one for each


Shape = tuple[int, ...]

# Outside layers: shape of the tensor under a model's spec.
_MODEL_NAMES: dict[str, tuple[Role, Callable[[ModelSpec], Shape]]] = {
    "embed.weight": (Role.VOCAB, lambda m: (m.vocab_size, m.decoder.hidden_size)),
    "positions.weight": (Role.REPLICATED, lambda m: (m.decoder.positions.num_positions, m.decoder.hidden_size)),
    "norm.weight": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "norm.bias": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "head.weight": (Role.VOCAB, lambda m: (m.vocab_size, m.decoder.hidden_size)),
    "head.bias": (Role.VOCAB, lambda m: (m.vocab_size,)),
}


def _q(layer: Layer) -> int:
    return layer.mixer.num_heads * layer.mixer.head_dim


def _kv(layer: Layer) -> int:
    return layer.mixer.num_kv_heads * layer.mixer.head_dim


# Below "layers.N.": shape under the layer's spec and the hidden size.
_LAYER_NAMES: dict[str, tuple[Role, Callable[[Layer, int], Shape]]] = {
    "norm1.weight": (Role.REPLICATED, lambda _, d: (d,)),
    "norm1.bias": (Role.REPLICATED, lambda _, d: (d,)),
    "mixer.q.weight": (Role.COLUMN, lambda layer, d: (_q(layer), d)),
    "mixer.q.bias": (Role.COLUMN, lambda layer, _: (_q(layer),)),
    "mixer.k.weight": (Role.COLUMN, lambda layer, d: (_kv(layer), d)),
    "mixer.k.bias": (Role.COLUMN, lambda layer, _: (_kv(layer),)),
    "mixer.v.weight": (Role.COLUMN, lambda layer, d: (_kv(layer), d)),
    "mixer.v.bias": (Role.COLUMN, lambda layer, _: (_kv(layer),)),
    "mixer.o.weight": (Role.ROW, lambda layer, d: (d, _q(layer))),
    "mixer.o.bias": (Role.REPLICATED, lambda _, d: (d,)),
    "norm2.weight": (Role.REPLICATED, lambda _, d: (d,)),
    "norm2.bias": (Role.REPLICATED, lambda _, d: (d,)),
    "mlp.gate.weight": (Role.COLUMN, lambda layer, d: (layer.mlp.size, d)),
    "mlp.gate.bias": (Role.COLUMN, lambda layer, _: (layer.mlp.size,)),
    "mlp.up.weight": (Role.COLUMN, lambda layer, d: (layer.mlp.size, d)),
    "mlp.up.bias": (Role.COLUMN, lambda layer, _: (layer.mlp.size,)),
    "mlp.down.weight": (Role.ROW, lambda layer, d: (d, layer.mlp.size)),
    "mlp.down.bias": (Role.REPLICATED, lambda _, d: (d,)),
}

# What every decoder has; a family adds what else its checkpoints hold.
_REQUIRED_IN_LAYER = (
    "norm1.weight", "mixer.q.weight", "mixer.k.weight", "mixer.v.weight", "mixer.o.weight", "mlp.up.weight",
    "mlp.down.weight",
)  # fmt: skip

_EVERY_LAYER = "layers.*."


def every_layer(*names: str) -> tuple[str, ...]:
    """Names for `required` that stand for a tensor of each layer, such as "mixer.q.bias"."""
    return tuple(_EVERY_LAYER + name for name in names)


def find(name: str, model: ModelSpec) -> tuple[Role, Shape] | None:
    """Role and shape of a canonical name, or None if the model can have no such tensor."""
    if name in _MODEL_NAMES:
        if name == "positions.weight" and model.decoder.positions is None:
            return None
        role, shape = _MODEL_NAMES[name]
        return role, shape(model)
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match is None or match[2] not in _LAYER_NAMES or int(match[1]) >= len(model.decoder.layers):
        return None
    role, layer_shape = _LAYER_NAMES[match[2]]
    return role, layer_shape(model.decoder.layers[int(match[1])], model.decoder.hidden_size)


def required(decoder: DecoderSpec, extras: Iterable[str] = ()) -> list[str]:
    """Names of the tensors that must be there: what every decoder has, and a family's extras (see every_layer)."""
    extras = tuple(extras)
    names = ["embed.weight"]
    if decoder.positions is not None:
        names.append("positions.weight")
    if decoder.layers[-1].residual != "post_norm":  # which has normed already
        names.append("norm.weight")
    if not decoder.tied:
        names.append("head.weight")
    names += [extra for extra in extras if not extra.startswith(_EVERY_LAYER)]
    in_layers = [extra.removeprefix(_EVERY_LAYER) for extra in extras if extra.startswith(_EVERY_LAYER)]
    for index, layer in enumerate(decoder.layers):
        second_norm = [] if layer.residual == "parallel" else ["norm2.weight"]  # one norm may feed both branches
        names += [f"layers.{index}.{name}" for name in (*_REQUIRED_IN_LAYER, *second_norm, *in_layers)]
    return names
