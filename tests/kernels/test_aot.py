"""Every Triton kernel compiles for Ampere and Hopper, keeps its numbers in registers, and fits the shared memory."""

from __future__ import annotations

import pytest

from tests.kernels.aot import MAX_SHARED_BYTES, Usage, compiled_usage, operations

pytestmark = pytest.mark.xdist_group("aot")  # one process compiles for all


@pytest.fixture(scope="module")
def usage() -> dict[str, list[Usage]]:
    pytest.importorskip("triton", reason="Triton is not installed")
    found: dict[str, list[Usage]] = {operation: [] for operation in operations()}
    for one in compiled_usage(list(found)):
        found[one.operation].append(one)
    return found


@pytest.mark.parametrize("operation", operations())
def test_kernels_compile_without_spilling(usage: dict[str, list[Usage]], operation: str) -> None:
    assert {one.arch for one in usage[operation]} == set(MAX_SHARED_BYTES), "nothing was compiled"
    complaints = [complaint for one in usage[operation] for complaint in one.complaints]
    assert not complaints, "\n".join(complaints)


def test_a_kernel_that_spills_or_does_not_fit_is_named() -> None:
    spilling = Usage("norm", "wide", 90, max_stack_bytes=8, registers=255, stack_bytes=16, shared_bytes=300_000)
    assert len(spilling.complaints) == 2
    assert not Usage("norm", "wide", 90, max_stack_bytes=16, registers=255, stack_bytes=16).complaints
    assert Usage("norm", "wide", 90, lacks="wgmma").complaints == ["wide on sm_90, 0 registers: no wgmma"]
    assert "no such thing" in Usage("norm", "wide", 80, error="no such thing").complaints[0]
