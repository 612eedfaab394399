"""Measures what --batch-invariant costs: two engines in one process, by turns, so that what disturbs one disturbs both.

python benchmarks/batch_invariance.py --dtype bfloat16,float32
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import workloads
from checkpoints import SHAPES, write_checkpoint
from engine_forebay import ForebayEngine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="qwen2-0.5b", choices=SHAPES, help="shape of the random checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="bfloat16,float32", help="number formats, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--batch", default="1,8,32", help="batch sizes of decode (default: %(default)s)")
    parser.add_argument("--prompt-len", type=int, default=128, help="prompt tokens of decode (default: %(default)s)")
    parser.add_argument("--num-tokens", type=int, default=32, help="output tokens of decode (default: %(default)s)")
    parser.add_argument("--prefill-len", type=int, default=1024, help="prompt tokens of prefill (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of each measurement; medians are printed (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(tempfile.gettempdir()), help="where random checkpoints are kept"
    )
    arguments = parser.parse_args()
    model = str(write_checkpoint(arguments.shape, arguments.cache_dir / f"forebay-bench-{arguments.shape}"))
    for dtype in arguments.dtype.split(","):
        print(f"\n{arguments.shape}, {dtype}, tokens/s{'without':>26}{'with':>12}{'ratio':>10}{'of each turn':>20}")
        compare(ForebayEngine(model, dtype), ForebayEngine(model, dtype, batch_invariant=True), arguments)
        gc.collect()
    return 0


def compare(plain: ForebayEngine, invariant: ForebayEngine, arguments: argparse.Namespace) -> None:
    """Prints a line for each workload."""
    sizes = {"prompt_len": arguments.prompt_len, "num_tokens": arguments.num_tokens}
    measurements: dict[str, Callable[[ForebayEngine, int], float]] = {
        f"decode, batch {batch}": lambda engine, seed, batch=batch: workloads.decode_rate(
            engine, batch, seed=seed, **sizes
        )
        for batch in map(int, arguments.batch.split(","))
    }
    measurements[f"prefill, 1 x {arguments.prefill_len}"] = lambda engine, seed: workloads.prefill_rate(
        engine, arguments.prefill_len, seed=seed
    )
    for engine in (plain, invariant):  # warm up
        workloads.run(engine, [workloads.prompt(engine, 64, 2)] * 2, 8)
    for name, measure in measurements.items():
        rates: dict[ForebayEngine, list[float]] = {plain: [], invariant: []}
        for seed in range(arguments.repeats):
            for engine in (plain, invariant) if seed % 2 else (invariant, plain):
                rates[engine].append(measure(engine, seed))
        without, given = (statistics.median(rates[engine]) for engine in (plain, invariant))
        ratios = sorted(b / a for a, b in zip(rates[plain], rates[invariant], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name:40}{without:>12.1f}{given:>12.1f}{given / without:>9.2f}x{spread:>20}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
