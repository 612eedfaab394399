"""The native module shares torch's threads, gives way where it is told to, and gives a row the same bits in any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import native
from kernels.batch_invariance import batch_invariant
from kernels.linear import linear
from kernels.paged_attention import paged_attention
from tests.kernels.test_paged_attention import SHAPES, make_case

ROOT = Path(__file__).parents[2]

needs_native = pytest.mark.skipif(native.lib is None, reason="native kernels are not built, or no AVX-512 here")


def run_python(code: str, **env: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip()


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_and_one_pool_of_threads() -> None:
    code = """
import os, torch
from kernels.linear import linear
x, w = torch.randn(64, 512), torch.randn(4096, 512)
torch.nn.functional.gelu(torch.randn(1 << 20))  # torch's own parallel region starts the pool
before = len(os.listdir("/proc/self/task"))
for n in (1, 4, 16, 64):
    linear(x[:n], w)
after = len(os.listdir("/proc/self/task"))
runtimes = {l.split()[-1] for l in open("/proc/self/maps") if any(n in l for n in ("libgomp", "libomp", "libiomp"))}
print(len(runtimes), after - before)
"""
    assert run_python(code) == "1 0"


def test_environment_switches_native_off() -> None:
    code = "from kernels import native; print(native.lib, native.codes)"
    assert run_python(code, FOREBAY_NATIVE="0") == "None {}"


def test_kernels_do_not_pass_for_the_package_of_that_name() -> None:
    """transformers probes for a package named kernels, which ours is not."""
    assert run_python("from transformers.utils import is_kernels_available as f; print(f())") == "False"


@needs_native
def test_batch_invariant_linear_gives_a_row_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((70, 333), (101, 333), (101,)))
    with batch_invariant():
        whole = linear(x, weight, bias)
        for first, last in ((0, 1), (3, 5), (10, 17), (20, 36), (5, 70)):
            assert torch.equal(linear(x[first:last], weight, bias), whole[first:last])


@needs_native
@pytest.mark.parametrize("window", [None, 50])
def test_attention_does_not_depend_on_chunks_or_batch(dtype: torch.dtype, window: int | None) -> None:
    """A prompt at once, in chunks and token by token: the same bits."""
    case = make_case(SHAPES[0], [(150, 150), (1, 90)], dtype)
    whole = paged_attention(*case.args, scale=0.1, window=window)
    first = 0
    for last in (64, 65, 66, 100, 149, 150):
        part = paged_attention(
            case.q[first:last],
            case.k_cache,
            case.v_cache,
            case.block_table[:1],
            torch.tensor([0, last - first], dtype=torch.int32),
            torch.tensor([last], dtype=torch.int32),
            scale=0.1,
            window=window,
        )
        assert torch.equal(part, whole[first:last]), (first, last)
        first = last


@needs_native
def test_number_of_threads_changes_no_bit() -> None:
    case = make_case(SHAPES[0], [(40, 200), (1, 90), (1, 300)], torch.bfloat16)
    x, weight = torch.randn(20, 256), torch.randn(3000, 256)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append((paged_attention(*case.args, scale=0.1), linear(x, weight), linear(x[:3], weight)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@needs_native
def test_block_outside_the_cache_is_refused() -> None:
    case = make_case((2, 1, 64, 16), [(1, 40)], torch.float32)
    for block_id in (-1, 10**6):
        case.block_table[0, 1] = block_id
        with pytest.raises(IndexError):
            paged_attention(*case.args, scale=0.1)
    case.block_table[0, 1] = 0
    with pytest.raises(IndexError):
        paged_attention(*case.args[:5], torch.tensor([4000], dtype=torch.int32), scale=0.1)
