"""Owns the canonical tensor names: what each is for, how it is shared out among devices, and its shape under a spec.

Every checkpoint's tensors end up under these names (see rules.py). Whatever works on weights, loading, sharding,
adapters, quantization, reads these tables: one for the model, and one for each kind of mixer and feed-forward layer.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from gpu_executor.models.spec import (
    Attention,
    BlockSparseAttention,
    DecoderSpec,
    Layer,
    Mamba,
    Mla,
    Mlp,
    ModelSpec,
    Moe,
)
from gpu_executor.models.towers.assembly import tensor_shapes
from gpu_executor.models.towers.tower import TowerSpec


class Role(enum.Enum):
    """How tensor parallelism shares a tensor out."""

    COLUMN = "column"  # by output: each device has some rows of (out, in)
    ROW = "row"  # by input: each device has some columns, results are summed
    VOCAB = "vocab"  # by vocabulary
    REPLICATED = "replicated"
    PER_HEAD = "per_head"  # one vector for every head, or one for each


Shape = tuple[int, ...]


def _embed(m: ModelSpec) -> int:
    return m.decoder.embed_size or m.decoder.hidden_size


# Outside layers: shape of the tensor under a model's spec.
_MODEL_NAMES: dict[str, tuple[Role, Callable[[ModelSpec], Shape]]] = {
    "embed.weight": (Role.VOCAB, lambda m: (m.vocab_size, _embed(m))),
    "embed_norm.weight": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "embed_norm.bias": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "project_in.weight": (Role.REPLICATED, lambda m: (m.decoder.hidden_size, _embed(m))),
    "positions.weight": (Role.REPLICATED, lambda m: (m.decoder.positions.num_positions, m.decoder.hidden_size)),
    "segments.weight": (Role.REPLICATED, lambda m: (m.decoder.num_segments, m.decoder.hidden_size)),
    "norm.weight": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "norm.bias": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "project_out.weight": (Role.REPLICATED, lambda m: (_embed(m), m.decoder.hidden_size)),
    "head.weight": (Role.VOCAB, lambda m: (m.vocab_size, _embed(m))),
    "head.bias": (Role.VOCAB, lambda m: (m.vocab_size,)),
}

# The same, where the model has a classifier.
_CLASSIFIER_NAMES: dict[str, tuple[Role, Callable[[ModelSpec], Shape]]] = {
    "dense.weight": (Role.REPLICATED, lambda m: (m.decoder.hidden_size, m.decoder.hidden_size)),
    "dense.bias": (Role.REPLICATED, lambda m: (m.decoder.hidden_size,)),
    "score.weight": (Role.REPLICATED, lambda m: (m.classifier.num_classes, m.decoder.hidden_size)),
    "score.bias": (Role.REPLICATED, lambda m: (m.classifier.num_classes,)),
}

# Below "layers.N.": norms around the branches.
_NORM_NAMES = frozenset(
    f"{norm}.{kind}"
    for norm in ("norm1", "norm2", "post_norm1", "post_norm2", "shared_norm", "cross_norm")
    for kind in ("weight", "bias")
)

# Below "layers.N.", of layers that scale what their branches add.
_GATE_NAMES = ("cross_gate", "mlp_gate")

# Below "layers.N.mixer.", ".cross." and ".mlp.": shape under the part's spec and the hidden size, by the spec's type.
_PartNames = dict[str, tuple[Role, Callable[[Any, int], Shape]]]


def _qk_norm(m: Attention, num_heads: int) -> tuple[int | None]:
    return {"head": (m.head_dim,), "projection": (num_heads * m.head_dim,)}.get(m.qk_norm, (None,))


def _norms_of_heads(m: Attention) -> dict[str, Shape]:
    """The weights of a norm whose heads each have one, below the mixer; with "bias" for "weight" they may have one too."""
    if m.qk_norm != "heads":
        return {}
    counts = {"q_norm": m.num_heads, "k_norm": m.num_kv_heads}
    return {f"{norm}.{head}.weight": (m.head_dim,) for norm, count in counts.items() for head in range(count)}


_ATTENTION: _PartNames = {
    "q.weight": (Role.COLUMN, lambda m, d: (m.num_heads * m.head_dim, d)),
    "q.bias": (Role.COLUMN, lambda m, _: (m.num_heads * m.head_dim,)),
    "k.weight": (Role.COLUMN, lambda m, d: (m.num_kv_heads * m.head_dim, d)),
    "k.bias": (Role.COLUMN, lambda m, _: (m.num_kv_heads * m.head_dim,)),
    "v.weight": (Role.COLUMN, lambda m, d: (m.num_kv_heads * m.head_dim, d)),
    "v.bias": (Role.COLUMN, lambda m, _: (m.num_kv_heads * m.head_dim,)),
    "q_norm.weight": (Role.PER_HEAD, lambda m, _: _qk_norm(m, m.num_heads)),
    "q_norm.bias": (Role.PER_HEAD, lambda m, _: _qk_norm(m, m.num_heads)),
    "k_norm.weight": (Role.PER_HEAD, lambda m, _: _qk_norm(m, m.num_kv_heads)),
    "k_norm.bias": (Role.PER_HEAD, lambda m, _: _qk_norm(m, m.num_kv_heads)),
    "o.weight": (Role.ROW, lambda m, d: (d, m.num_heads * m.head_dim)),
    "o.bias": (Role.REPLICATED, lambda _, d: (d,)),
}

_MLA: _PartNames = {
    "q.weight": (Role.COLUMN, lambda m, d: (m.num_heads * (m.nope_dim + m.rope.dim), d)),
    "q_a.weight": (Role.REPLICATED, lambda m, d: (m.q_rank, d)),
    "q_a.bias": (Role.REPLICATED, lambda m, _: (m.q_rank,)),
    "q_norm.weight": (Role.REPLICATED, lambda m, _: (m.q_rank,)),
    "q_b.weight": (Role.COLUMN, lambda m, _: (m.num_heads * (m.nope_dim + m.rope.dim), m.q_rank)),
    "kv_a.weight": (Role.REPLICATED, lambda m, d: (m.kv_rank + m.rope.dim, d)),
    "kv_a.bias": (Role.REPLICATED, lambda m, _: (m.kv_rank + m.rope.dim,)),
    "kv_norm.weight": (Role.REPLICATED, lambda m, _: (m.kv_rank,)),
    "kv_b.weight": (Role.COLUMN, lambda m, _: (m.num_heads * (m.nope_dim + m.v_dim), m.kv_rank)),
    "o.weight": (Role.ROW, lambda m, d: (d, m.num_heads * m.v_dim)),
    "o.bias": (Role.REPLICATED, lambda _, d: (d,)),
}

_MAMBA: _PartNames = {
    "in_proj.weight": (Role.COLUMN, lambda m, d: (2 * m.inner_size, d)),
    "in_proj.bias": (Role.COLUMN, lambda m, _: (2 * m.inner_size,)),
    "conv.weight": (Role.COLUMN, lambda m, _: (m.inner_size, m.conv_size)),
    "conv.bias": (Role.COLUMN, lambda m, _: (m.inner_size,)),
    "x_proj.weight": (Role.ROW, lambda m, _: (m.dt_rank + 2 * m.state_size, m.inner_size)),
    "dt_norm.weight": (Role.REPLICATED, lambda m, _: (m.dt_rank,)),
    "b_norm.weight": (Role.REPLICATED, lambda m, _: (m.state_size,)),
    "c_norm.weight": (Role.REPLICATED, lambda m, _: (m.state_size,)),
    "dt_proj.weight": (Role.COLUMN, lambda m, _: (m.inner_size, m.dt_rank)),
    "dt_proj.bias": (Role.COLUMN, lambda m, _: (m.inner_size,)),
    "a": (Role.COLUMN, lambda m, _: (m.inner_size, m.state_size)),  # the matrix A itself, negative
    "d": (Role.COLUMN, lambda m, _: (m.inner_size,)),
    "out_proj.weight": (Role.ROW, lambda m, d: (d, m.inner_size)),
    "out_proj.bias": (Role.REPLICATED, lambda _, d: (d,)),
}


def _mlp_names(prefix: str, size: Callable[[Any], int]) -> _PartNames:
    """A feed-forward layer of size(spec) below a prefix."""
    return {
        f"{prefix}gate.weight": (Role.COLUMN, lambda m, d: (size(m), d)),
        f"{prefix}gate.bias": (Role.COLUMN, lambda m, _: (size(m),)),
        f"{prefix}up.weight": (Role.COLUMN, lambda m, d: (size(m), d)),
        f"{prefix}up.bias": (Role.COLUMN, lambda m, _: (size(m),)),
        f"{prefix}down.weight": (Role.ROW, lambda m, d: (d, size(m))),
        f"{prefix}down.bias": (Role.REPLICATED, lambda _, d: (d,)),
    }


_MOE: _PartNames = {
    "router.weight": (Role.REPLICATED, lambda m, d: (m.num_experts, d)),
    "router.score_bias": (Role.REPLICATED, lambda m, _: (m.num_experts,)),  # for the choice alone, not for the weights
    **_mlp_names("shared.", lambda m: m.shared_size),
    "shared_gate.weight": (Role.REPLICATED, lambda _, d: (1, d)),
}
# Of each expert, below "experts.N.".
_EXPERT: _PartNames = {
    name: entry for name, entry in _mlp_names("", lambda m: m.size).items() if name.endswith(".weight")
}

_PARTS: dict[type, _PartNames] = {
    Attention: _ATTENTION,
    BlockSparseAttention: {
        name: (role, lambda m, d, shape=shape: shape(m.attention, d))
        for name, (role, shape) in _ATTENTION.items()
        if "norm" not in name
    },
    Mla: _MLA,
    Mamba: _MAMBA,
    Mlp: _mlp_names("", lambda m: m.size),
    Moe: _MOE,
}

# Below "layers.N.", whatever the model's number format: near ties must not flip by rounding, and an error in how fast a
# state decays adds up over all that it remembers.
FLOAT32_NAMES = frozenset({"mlp.router.score_bias", "mixer.a", "mixer.d", "mixer.dt_proj.bias"})

# Matrices that layers use through Weights.linear alone, and that may therefore stay quantized.
_OF_LINEAR = re.compile(
    r"(?:encoder\.)?layers\.\d+\.(?:(?:mixer|cross)\.(?:q|k|v|o|q_a|q_b|kv_a|in_proj|x_proj|out_proj)"
    r"|mlp\.(?:shared\.)?(?:gate|up|down))\.weight"
)

_EVERY_LAYER = "layers.*."
ENCODER = "encoder."  # stands before the names of an encoder's tensors
TOWER = "tower."  # and before those of a tower, which are the names of its module's parameters


def every_layer(*names: str) -> tuple[str, ...]:
    """Names for `required` that stand for a tensor of each layer that can have it, such as "mixer.q.bias"."""
    return tuple(_EVERY_LAYER + name for name in names)


def is_of_head(name: str) -> bool:
    """Whether a canonical name belongs to the head over the vocabulary."""
    return name.startswith("head.")


def is_of_linear(name: str) -> bool:
    """Whether the matrix of this canonical name is used as a linear layer's alone, so that it may stay quantized."""
    return _OF_LINEAR.fullmatch(name) is not None


def find(name: str, model: ModelSpec) -> tuple[Role, Shape] | None:
    """Role and shape of a canonical name, or None if the model can have no such tensor."""
    if name.startswith(ENCODER):
        name = name.removeprefix(ENCODER)
        if model.encoder is None or name.startswith(("embed.", "head.")):  # which are the decoder's
            return None
        return find(name, dataclasses.replace(model, decoder=model.encoder, encoder=None))
    if name.startswith(TOWER):
        shape = tower_shapes(model).get(name.removeprefix(TOWER))
        return None if shape is None else (Role.REPLICATED, shape)
    if name in _MODEL_NAMES:
        decoder = model.decoder
        if (
            (name == "positions.weight" and decoder.positions is None)
            or (name == "segments.weight" and not decoder.num_segments)
            or (name.startswith("project_") and decoder.embed_size is None)
        ):
            return None
        role, shape = _MODEL_NAMES[name]
        return role, shape(model)
    if name in _CLASSIFIER_NAMES:
        role, shape = _CLASSIFIER_NAMES[name]
        return None if model.classifier is None else (role, shape(model))
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match is None or int(match[1]) >= len(model.decoder.layers):
        return None
    return _find_in_layer(match[2], model.decoder.layers[int(match[1])], model.decoder.hidden_size)


def _find_in_layer(name: str, layer: Layer, hidden_size: int) -> tuple[Role, Shape] | None:
    if name in _NORM_NAMES and (layer.cross is not None or not name.startswith("cross_norm.")):
        return Role.REPLICATED, (hidden_size,)
    if name in _GATE_NAMES and layer.residual == "gated_cross":
        return Role.REPLICATED, (1,)
    part, _, rest = name.partition(".")
    spec = {"mixer": layer.mixer, "cross": layer.cross, "mlp": layer.mlp}.get(part)
    names = _PARTS.get(type(spec), {})
    if isinstance(spec, Attention):
        of_heads = _norms_of_heads(spec)
        if (weight := rest.removesuffix("bias") + "weight" if rest.endswith(".bias") else rest) in of_heads:
            return Role.PER_HEAD, of_heads[weight]
    if isinstance(spec, Moe) and (expert := re.fullmatch(r"experts\.(\d+)\.(.+)", rest)):
        names, rest = (_EXPERT if int(expert[1]) < spec.num_experts else {}), expert[2]
    if rest not in names:
        return None
    role, shape_of = names[rest]
    if rest.startswith("shared") and spec.shared_size is None:
        return None
    if isinstance(spec, Mamba) and rest.endswith("_norm.weight") and (spec.norm is None or not spec.norm.affine):
        return None
    shape = shape_of(spec, hidden_size)
    return None if None in shape else (role, shape)


def required(model: ModelSpec, extras: Iterable[str] = ()) -> list[str]:
    """Names of the tensors that must be there: what the spec alone says, and a family's extras (see every_layer).

    Extras of every layer are those of an encoder's layers too, as far as these can have them.
    """
    extras, decoder, encoder = tuple(extras), model.decoder, model.encoder
    names = ["embed.weight", *_required_in_stack(decoder, extras)]
    if model.has_head and not decoder.tied:
        names.append("head.weight")
    if model.classifier is not None:
        names.append("score.weight")
    names += [
        extra for extra in extras if not extra.startswith(_EVERY_LAYER) and (model.has_head or not is_of_head(extra))
    ]
    names += [TOWER + name for name in tower_shapes(model)]
    return names + ([] if encoder is None else [ENCODER + name for name in _required_in_stack(encoder, extras)])


def tower_shapes(model: ModelSpec) -> dict[str, Shape]:
    """Shapes of the parameters of the model's tower, by their names in its module; empty without a tower."""
    return {} if model.tower is None else _tower_shapes(model.tower)


@functools.lru_cache(maxsize=8)  # specs are compared by identity, and live as long as their model
def _tower_shapes(tower: TowerSpec) -> dict[str, Shape]:
    return tensor_shapes(tower)


def _required_in_stack(decoder: DecoderSpec, extras: tuple[str, ...]) -> list[str]:
    """Names between the embedding and the head."""
    names = []
    if decoder.positions is not None:
        names.append("positions.weight")
    if decoder.num_segments:
        names.append("segments.weight")
    if decoder.embed_size is not None:
        names += ["project_in.weight", "project_out.weight"]
    if decoder.norm.affine and decoder.layers[-1].residual != "post_norm":  # which has normed already
        names.append("norm.weight")
    in_layers = [extra.removeprefix(_EVERY_LAYER) for extra in extras if extra.startswith(_EVERY_LAYER)]
    for index, layer in enumerate(decoder.layers):
        wanted = dict.fromkeys(_required_in_layer(layer, decoder.norm.affine))
        wanted |= dict.fromkeys(n for n in in_layers if _find_in_layer(n, layer, decoder.hidden_size) is not None)
        names += [f"layers.{index}.{name}" for name in wanted]
    return names


def _required_in_layer(layer: Layer, affine: bool) -> list[str]:
    names = ["norm1.weight"] if affine and layer.mixer is not None else []
    if affine and layer.mlp is not None and layer.residual != "parallel":  # where one norm may feed both branches
        names.append("norm2.weight")
    names += [f"mixer.{name}" for name in _required_of_mixer(layer.mixer)]
    if layer.cross is not None:
        names += ["cross_norm.weight"] if affine else []
        names += [f"cross.{name}" for name in _required_of_mixer(layer.cross)]
    if layer.residual == "gated_cross":
        names += _GATE_NAMES
    return names + [f"mlp.{name}" for name in _required_of_mlp(layer.mlp)]


def _required_of_mixer(mixer: Attention | BlockSparseAttention | Mla | Mamba | None) -> tuple[str, ...]:
    match mixer:
        case Attention():
            whole = mixer.qk_norm in ("head", "projection")
            norms = ("q_norm.weight", "k_norm.weight") if whole else _norms_of_heads(mixer)
            return ("q.weight", "k.weight", "v.weight", "o.weight", *norms)
        case BlockSparseAttention():
            return _required_of_mixer(mixer.attention)
        case Mla():
            queries = ("q.weight",) if mixer.q_rank is None else ("q_a.weight", "q_norm.weight", "q_b.weight")
            return (*queries, "kv_a.weight", "kv_norm.weight", "kv_b.weight", "o.weight")
        case Mamba():
            norms = ("dt_norm", "b_norm", "c_norm") if mixer.norm is not None and mixer.norm.affine else ()
            matrices = ("in_proj", "conv", "x_proj", *norms, "dt_proj", "out_proj")
            return (*(f"{name}.weight" for name in matrices), "dt_proj.bias", "a", "d")
        case None:
            return ()


def _required_of_mlp(mlp: Mlp | Moe | None) -> tuple[str, ...]:
    match mlp:
        case Mlp():
            return ("up.weight", "down.weight")
        case Moe():
            experts = [f"experts.{e}.{part}.weight" for e in range(mlp.num_experts) for part in ("gate", "up", "down")]
            shared = () if mlp.shared_size is None else ("shared.gate.weight", "shared.up.weight", "shared.down.weight")
            return ("router.weight", *experts, *shared)
        case None:
            return ()
