"""Loads the compiled CPU kernels, or says that there are none, so that the torch paths serve.

`codes` maps the number formats that the kernels take on this CPU to the C code's names for them; it is empty where the
extension was not built, the CPU lacks AVX-512, or FOREBAY_NATIVE=0. Callers look there at call time, then call `lib`.
The extension has no OpenMP runtime of its own: importing torch puts torch's into the global scope, and ours resolves
there. Two runtimes would mean two pools of spinning threads.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch

__all__ = ["advise_huge_pages", "codes", "lib"]


def _load() -> tuple[ModuleType | None, dict[torch.dtype, int]]:
    if os.environ.get("FOREBAY_NATIVE", "1") == "0":
        return None, {}
    try:
        from kernels.native import _cpu
    except ImportError:
        return None, {}
    features = _cpu.features()
    codes = {torch.float32: 0, torch.float16: 2} if features & 1 else {}
    if features & 2:
        codes[torch.bfloat16] = 1
    return (_cpu if codes else None), codes


lib, codes = _load()


def advise_huge_pages(tensor: torch.Tensor) -> bool:
    """Asks the system to hold a dense CPU tensor in pages of 2 MiB; whether it took the advice.

    Weights and KV caches in huge pages are read some 10 to 30 % faster by few tokens, since they take fewer address
    translations. To be called between torch.empty and the first write: pages that are in use stay as they are.
    """
    if lib is None or not tensor.is_cpu or not tensor.is_contiguous():
        return False
    return lib.advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
