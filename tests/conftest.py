"""Keeps the suite's processes from fighting over cores, and gives Triton an interpreter where there is no GPU.

Set before anything imports torch, which imports Triton, and inherited by servers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch

# A thread that waits for others sleeps instead of spinning, and each of several workers computes with one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the test's tensors are to lie so that public calls take the Triton kernels: a GPU, or else the interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    import torch

    from kernels import triton_path, triton_runtime

    if torch.cuda.is_available():
        return torch.device("cuda")
    assert triton_runtime.INTERPRETED, "torch sees no GPU, and Triton was imported without TRITON_INTERPRET=1"
    monkeypatch.setattr(triton_path, "on_cpu", True)
    return torch.device("cpu")
