"""Says whether a call takes the Triton kernels. Knows nothing of Triton itself, which is imported where a kernel runs.

Tensors on a GPU always do. On the CPU they do where Triton's interpreter stands in for a GPU, which is slow and meant for
tests: TRITON_INTERPRET=1 together with FOREBAY_KERNELS=triton in the environment, both set before the first import.
"""

from __future__ import annotations

import os

import torch


def _asked_on_cpu() -> bool:
    """Raises ValueError for a FOREBAY_KERNELS that means nothing, or that cannot be had."""
    asked = os.environ.get("FOREBAY_KERNELS", "")
    if asked not in ("", "triton"):
        raise ValueError(f"FOREBAY_KERNELS is {asked!r}; it takes 'triton' or nothing")
    if asked and os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        raise ValueError(
            "FOREBAY_KERNELS=triton runs Triton kernels without a GPU; that takes TRITON_INTERPRET=1 as well"
        )
    return asked == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


on_cpu = _asked_on_cpu()


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether a kernel that works where this tensor lies is Triton's."""
    return tensor.is_cuda or (on_cpu and tensor.is_cpu)
