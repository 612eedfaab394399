"""Imports Triton, once and with its settings fixed, and names what every Triton kernel needs beside it.

Only kernel.py files import this module, and only they are imported late: an install without Triton serves from the CPU.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

# a * b + c in one rounding, as torch's own kernels have it; the default differs between versions of Triton.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
import triton.language as tl

__all__ = ["INTERPRETED", "Specialization", "is_hopper", "next_power_of_2", "num_processors", "tl", "triton", "upcast"]

# Set where kernels run on the CPU, one program after the other, in numpy.
INTERPRETED = bool(triton.knobs.runtime.interpret)

next_power_of_2 = triton.next_power_of_2


def upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel must widen to float32 right after each load: the interpreter computes with the bits of bfloat16."""
    return INTERPRETED and dtype == torch.bfloat16


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU, which a grid should fill; a small GPU's under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def is_hopper(device: torch.device) -> bool:
    """Whether it has Hopper's instructions for matrices and its 227 KiB of shared memory."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Specialization:
    """One way to compile a kernel, which the tests do ahead of time for each kind of GPU, and what it may use there.

    A kernel.py lists in COMPILED those that its public call launches most, with the numbers that the call would choose.
    Pointers are taken to be aligned to 16 bytes, and so are the integers named in `aligned` to be multiples of 16.
    """

    name: str
    kernel: Any  # what @triton.jit made
    types: Mapping[str, str]  # of each argument that is no constant: "*bf16", "*i64", "i32", "fp32"
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    max_stack_bytes: int = 0  # of one thread; registers that did not fit lie there
    wgmma: bool = False  # whether Hopper must multiply with its own instruction
    archs: tuple[int, ...] = (80, 90)
