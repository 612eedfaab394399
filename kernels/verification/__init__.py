"""Checks every operation on the device at hand: against its definition, against itself, and in other company.

Small shapes without a model, for `forebay verify` and for the tests. Each module beside this one builds cases in CASES, by
the operation's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator

from kernels.verification.case import Case, Place

__all__ = ["Case", "Place", "operations"]


def operations() -> dict[str, Callable[[Place], Iterator[Case]]]:
    """What builds each operation's cases, by its name, which is that of its folder."""
    found: dict[str, Callable[[Place], Iterator[Case]]] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "CASES", {})
    return dict(sorted(found.items()))
