"""Owns `--override-pooler-config`: what an operator may change of a model's pooling, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from gpu_executor.models.spec import PoolingKind


@dataclasses.dataclass(frozen=True, slots=True)
class PoolerOverride:
    """`--override-pooler-config`; what is None stays as the checkpoint has it."""

    pooling_type: PoolingKind | None = None
    normalize: bool | None = None
    softmax: bool | None = None  # whether the activation is applied
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] = ()  # columns of the head's logits, in place of the hidden states

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> PoolerOverride:
        """The override that an operator writes; raises ValueError naming the key that is wrong."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise ValueError(f"override_pooler_config has {name!r}; it knows {', '.join(names)}")
            if value is not None and not _fits(name, value):
                raise ValueError(f"{name} of override_pooler_config is {value!r}; it must be {_EXPECTED[name]}")
        known = {name: value for name, value in values.items() if value is not None}
        if "pooling_type" in known:
            known["pooling_type"] = known["pooling_type"].lower()
        return cls(**known | {"returned_token_ids": tuple(known.get("returned_token_ids", ()))})


_EXPECTED = {
    "pooling_type": f"one of {', '.join(kind.upper() for kind in get_args(PoolingKind))}",
    "normalize": "true or false",
    "softmax": "true or false",
    "step_tag_id": "a token id",
    "returned_token_ids": "a list of token ids",
}


def _fits(name: str, value: Any) -> bool:
    match name:
        case "pooling_type":
            return isinstance(value, str) and value.lower() in get_args(PoolingKind)
        case "normalize" | "softmax":
            return isinstance(value, bool)
        case "step_tag_id":
            return _is_token_id(value)
        case _:
            return isinstance(value, list | tuple) and all(map(_is_token_id, value))


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
