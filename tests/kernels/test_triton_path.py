"""Triton is imported where its kernels run and nowhere else, and a setting that cannot be had is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import triton_path

ROOT = Path(__file__).parents[2]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FOREBAY_KERNELS")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip


CALL = """
import sys, torch
from kernels.rope_latent_write import rope_latent_write
z = torch.zeros(1, 1, 2, dtype=torch.int64)
rope_latent_write(z.float(), z[0].float(), z[0].float(), z[0].float(), z[0, 0, :1], z.new_zeros(1, 1, 4).float(), z[0, 0, :1])
print("kernels.triton_runtime" in sys.modules)
"""


def test_the_cpu_needs_no_triton() -> None:
    """Not even installed: an import of it would fail."""
    result = run_python(f"import sys; sys.modules['triton'] = None\n{CALL}")
    assert result.stdout.split() == ["False"], result.stderr


def test_the_environment_asks_for_triton_on_the_cpu() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    result = run_python(CALL, TRITON_INTERPRET="1", FOREBAY_KERNELS="triton")
    assert result.stdout.split() == ["True"], result.stderr
    assert run_python(CALL, TRITON_INTERPRET="1").stdout.split() == ["False"]


def test_settings_that_cannot_be_had_are_refused() -> None:
    assert "FOREBAY_KERNELS is 'cuda'" in run_python(CALL, FOREBAY_KERNELS="cuda").stderr
    if not torch.cuda.is_available():
        assert "TRITON_INTERPRET=1 as well" in run_python(CALL, FOREBAY_KERNELS="triton").stderr


def test_tensors_decide_by_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not triton_path.use_triton(torch.zeros(1))
    monkeypatch.setattr(triton_path, "on_cpu", True)
    assert triton_path.use_triton(torch.zeros(1))
    assert not triton_path.use_triton(torch.zeros(1, device="meta"))
