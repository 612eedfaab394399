"""Measures the Triton kernels on a GPU: each against the least time that its bytes and its arithmetic need, and against
what torch offers for the same.

    python benchmarks/kernels_gpu.py
    python benchmarks/kernels_gpu.py paged --rounds 50

Bounds are of this GPU as measured in the same run: bytes at the rate of a copy, arithmetic at that of a large bfloat16
product. Every call is captured in a CUDA graph, so that no time of Python's is in it, and finds the caches cold. Figures
are medians. Nothing here has been run on a GPU yet; the test suite holds that a row and its rivals compute the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.kernel_rows import Place, Row, all_rows

_FLUSHED_BYTES = 256 << 20  # more than any GPU's cache holds
_COPIED_BYTES = 1 << 30
_PRODUCT_SIZE = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "group", nargs="?", default="", help="measure the groups whose name contains this (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=30, help="calls of which the median is shown (default: %(default)s)"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("This measures kernels on a CUDA GPU, and there is none here: nothing was measured.", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    torch.manual_seed(0)
    with torch.inference_mode():
        bandwidth, rate = copy_bandwidth(device, args.rounds), product_rate(device, args.rounds)
        print(
            f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s, bfloat16 products {rate / 1e12:.0f} TFLOP/s"
        )
        print(f"{'':52}{'us':>9}{'bound':>9}{'share':>7}  torch: us (times ours)")
        for row in all_rows(Place(device, torch.bfloat16), args.group):
            print(line_of(row, bandwidth, rate, args.rounds), flush=True)
            torch.compiler.reset()
    return 0


def line_of(row: Row, bandwidth: float, rate: float, rounds: int) -> str:
    """A row as it is printed: microseconds, those of its bound, their ratio, and the rivals'."""
    ours = median_time(row.call, rounds)
    bound = max(row.bytes_moved / bandwidth, row.flops / rate)
    rivals = dict(row.rivals) | {name: torch.compile(call) for name, call in row.compiled.items()}
    times = {name: median_time(call, rounds) for name, call in rivals.items()}
    theirs = "; ".join(f"{name} {time * 1e6:.1f} ({time / ours:.2f})" for name, time in times.items())
    return f"{row.name:52}{ours * 1e6:9.1f}{bound * 1e6:9.1f}{bound / ours:7.0%}  {theirs}"


def median_time(call: Callable[[], object], rounds: int) -> float:
    """Seconds on the GPU of a call that is captured in a graph and finds cold caches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles what is to be compiled
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes read and written per second by a copy."""
    source, target = (torch.empty(_COPIED_BYTES, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * _COPIED_BYTES / median_time(lambda: target.copy_(source), rounds)


def product_rate(device: torch.device, rounds: int) -> float:
    """Floating-point operations per second of a large bfloat16 product."""
    a, b = (torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * _PRODUCT_SIZE**3 / median_time(lambda: a @ b, rounds)


if __name__ == "__main__":
    sys.exit(main())
