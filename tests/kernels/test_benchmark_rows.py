"""Rows of benchmarks/kernels_gpu.py compare like with like: what is measured beside a kernel gives the kernel's result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernel_rows import Place, Row, all_rows
from tests.kernels.closeness import assert_close

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return list(all_rows(Place(device, torch.float32, size=0.01)))


def test_rivals_compute_what_the_kernels_do(rows: list[Row]) -> None:
    compared = 0
    for row in rows:
        ours = row.call()
        for name, rival in [*row.rivals.items(), *row.compiled.items()]:
            assert_close(ours, rival(), f"{row.name}, {name}")
            compared += 1
    assert compared >= len(rows)


def test_rows_say_what_they_move_and_have_names_of_their_own(rows: list[Row]) -> None:
    assert len({row.name for row in rows}) == len(rows) > 10
    assert all(row.bytes_moved > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_it_says_so() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/kernels_gpu.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    assert "there is none here: nothing was measured" in result.stderr
