"""What `forebay verify` checks holds on every path that can serve the CPU, and what is broken is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kernels.linear
import kernels.rms_norm
import kernels.selective_scan
from kernels.verification import Place, operations, products, rows, sequences
from kernels.verification.check import Finding, check

CPU = torch.device("cpu")


def findings(operation: str, dtype: torch.dtype = torch.float32) -> list[Finding]:
    return list(check(operation, Place(CPU, dtype)))


def test_every_operation_has_cases() -> None:
    folders = {path.parent.name for path in Path(kernels.linear.__file__).parents[1].glob("*/reference.py")}
    assert set(operations()) == folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("operation", operations())
def test_the_cpu_passes(path: str, dtype: torch.dtype, operation: str) -> None:
    found = findings(operation, dtype)
    assert found and [finding for finding in found if not finding.ok] == []


def test_a_kernel_that_is_a_little_off_is_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "rms_norm", lambda x, weight, eps: kernels.rms_norm.rms_norm(x, weight, eps) * 1.0001)
    found = findings("rms_norm")
    assert not any(finding.close for finding in found)
    assert all(finding.error > finding.allowed and finding.repeats and finding.invariant for finding in found)


def test_a_kernel_whose_order_varies_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def restless(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return kernels.linear.linear(x, weight, bias) * (1 + len(calls) % 2 * 2**-22)

    monkeypatch.setattr(products, "linear", restless)
    found = findings("linear")
    assert all(finding.close for finding in found) and not any(finding.repeats for finding in found)


def test_a_kernel_that_sees_its_batch_is_not_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    def sociable(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return kernels.linear.linear(x, weight, bias) * (1 + len(x) % 2 * 2**-22)

    monkeypatch.setattr(products, "linear", sociable)
    of_one, *of_many = findings("linear")
    assert of_one.ok
    assert all(finding.close and finding.repeats and not finding.invariant for finding in of_many)


def test_a_kernel_that_forgets_its_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*args: torch.Tensor) -> torch.Tensor:
        *given, state, query_start, seq_lens, slots = args
        return kernels.selective_scan.selective_scan(*given, state.clone(), query_start, seq_lens, slots)

    monkeypatch.setattr(sequences, "selective_scan", forgetful)
    found = findings("selective_scan")
    assert not any(finding.close or finding.invariant for finding in found)


def test_a_kernel_that_cannot_run_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if len(x) == 30:
            raise RuntimeError("out of registers")
        return kernels.linear.linear(x, weight, bias)

    monkeypatch.setattr(products, "linear", strict)
    assert [finding.failure for finding in findings("linear")] == ["", "RuntimeError: out of registers", ""]
