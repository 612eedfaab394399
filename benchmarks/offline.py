"""Measures an engine in this process: decode at several batch sizes, prefill, gaps between tokens, start-up.

    python benchmarks/offline.py --shape qwen2-0.5b --dtype bfloat16
    python benchmarks/offline.py --shape qwen2-0.5b --peer vllm --peer-python /path/to/vllm-venv/bin/python

With --peer both engines run in turn on the same random checkpoint, and every figure is printed beside its ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workloads
from checkpoints import SHAPES, write_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder (default: a random one of --shape)")
    parser.add_argument(
        "--shape", default="qwen2-0.5b", choices=SHAPES, help="shape of the random checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="bfloat16,float32", help="number formats, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--batch", default="1,8,32", help="batch sizes of decode (default: %(default)s)")
    parser.add_argument("--prompt-len", type=int, default=128, help="prompt tokens of decode (default: %(default)s)")
    parser.add_argument("--num-tokens", type=int, default=64, help="output tokens of decode (default: %(default)s)")
    parser.add_argument("--prefill-len", type=int, default=1024, help="prompt tokens of prefill (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each measurement; medians are printed (default: %(default)s)"
    )
    parser.add_argument("--peer", choices=("vllm",), help="measure this engine too, in turn with Forebay")
    parser.add_argument("--peer-python", default=sys.executable, help="Python of the peer's virtual environment")
    parser.add_argument(
        "--peer-eager",
        action="store_true",
        help="run vLLM with enforce_eager: faster to start, on some CPUs faster at all",
    )
    parser.add_argument("--batch-invariant", action="store_true", help="run Forebay with this flag of its own")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(tempfile.gettempdir()), help="where random checkpoints are kept"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per engine and dtype instead of tables"
    )
    parser.add_argument("--engine", choices=("forebay", "vllm"), help=argparse.SUPPRESS)  # a child of this command
    arguments = parser.parse_args()
    if arguments.engine:
        print(json.dumps(measure(arguments)))
        return 0
    model = arguments.model or str(
        write_checkpoint(arguments.shape, arguments.cache_dir / f"forebay-bench-{arguments.shape}")
    )
    for dtype in arguments.dtype.split(","):
        results = {
            engine: run_child(arguments, engine, model, dtype) for engine in ("forebay", arguments.peer) if engine
        }
        if arguments.json:
            for engine, result in results.items():
                print(json.dumps({"engine": engine, "dtype": dtype, **result}))
        else:
            print_table(model, dtype, results)
    return 0


def run_child(arguments: argparse.Namespace, engine: str, model: str, dtype: str) -> dict[str, float]:
    """Measures in a process of its own, so that start-up counts and no engine sees another's threads."""
    python = arguments.peer_python if engine == arguments.peer else sys.executable
    command = [
        python, __file__, "--engine", engine, "--model", model, "--dtype", dtype, "--batch", arguments.batch,
        "--prompt-len", str(arguments.prompt_len), "--num-tokens", str(arguments.num_tokens),
        "--prefill-len", str(arguments.prefill_len), "--repeats", str(arguments.repeats),
        *(["--peer-eager"] if arguments.peer_eager else []),
        *(["--batch-invariant"] if arguments.batch_invariant else []),
    ]  # fmt: skip
    print(f"measuring {engine} in {dtype} …", file=sys.stderr, flush=True)
    started = str(time.time())
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"FOREBAY_BENCH_STARTED": started}
    )
    if done.returncode:
        sys.exit(f"measuring {engine} failed with exit status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """All figures of one engine."""
    started = float(os.environ.get("FOREBAY_BENCH_STARTED", time.time()))
    if arguments.engine == "vllm":
        from engine_vllm import VllmEngine

        engine: workloads.SteppedEngine = VllmEngine(arguments.model, arguments.dtype, eager=arguments.peer_eager)
    else:
        from engine_forebay import ForebayEngine

        engine = ForebayEngine(arguments.model, arguments.dtype, batch_invariant=arguments.batch_invariant)
    workloads.run(engine, [workloads.prompt(engine, 8, 1)], 1)
    result = {"start_to_first_token_s": time.time() - started}
    workloads.run(engine, [workloads.prompt(engine, 64, 2)] * 2, 8)  # warm up
    for batch in map(int, arguments.batch.split(",")):
        rates = workloads.best_of(
            lambda seed, batch=batch: workloads.decode_rate(
                engine, batch, prompt_len=arguments.prompt_len, num_tokens=arguments.num_tokens, seed=seed
            ),
            arguments.repeats,
        )
        result[f"decode_batch_{batch}_tokens_per_s"] = statistics.median(rates)
    rates = workloads.best_of(
        lambda seed: workloads.prefill_rate(engine, arguments.prefill_len, seed=seed), arguments.repeats
    )
    result[f"prefill_{arguments.prefill_len}_tokens_per_s"] = statistics.median(rates)
    longest, median = workloads.longest_gap(engine, length=arguments.prefill_len)
    return result | {"longest_gap_s": longest, "median_gap_s": median}


def print_table(model: str, dtype: str, results: dict[str, dict[str, float]]) -> None:
    """One line per figure; with a peer, Forebay's share of its figure."""
    engines = list(results)
    print(f"\n{Path(model).name}, {dtype}, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':38}" + "".join(f"{engine:>12}" for engine in engines) + (f"{'ratio':>10}" if len(engines) > 1 else ""))
    for name in results["forebay"]:
        values = [results[engine][name] for engine in engines]
        ratio = f"{values[0] / values[1]:>9.2f}x" if len(values) > 1 else ""
        print(
            f"{name:38}" + "".join(f"{value:>12.3g}" if value < 10 else f"{value:>12.1f}" for value in values) + ratio
        )


if __name__ == "__main__":
    sys.exit(main())
