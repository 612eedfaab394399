"""Measures the CPU kernels beside what torch offers for the same, in the same run.

    python benchmarks/kernels_cpu.py
    python benchmarks/kernels_cpu.py linear --tokens 1,8,32 --dtype bfloat16 --shapes 896x9728
    OMP_NUM_THREADS=1 python benchmarks/kernels_cpu.py attention small

Weights are cycled through more memory than the caches hold, as the layers of a model are, so GB/s is of weights read from
memory. Every figure is the best of several rounds, and the candidates take turns within a round: on a machine that does
other work the ratios hold where the figures do not. `read` is what torch.sum reaches on the same weights.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F

from kernels import native
from kernels.activation import silu_and_mul
from kernels.embedding import embedding
from kernels.linear import cpu as linear_cpu
from kernels.linear import linear
from kernels.paged_attention import paged_attention
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope_kv_write import rope_kv_write

# Qwen2-0.5B: 896 wide, 14 heads of 64 over 2 kv heads, MLP 4864, vocabulary 151936.
HIDDEN, MLP, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 896, 4864, 14, 2, 64, 16
CYCLED_BYTES = 160_000_000
GROUPS = ("linear", "attention", "small")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"what to measure: {', '.join(GROUPS)} (default: all)"
    )
    parser.add_argument(
        "--tokens",
        default="1,2,4,8,16,32,64,128,256,1024",
        help="tokens of linear, comma-separated (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float32,bfloat16", help="number formats (default: %(default)s)")
    parser.add_argument(
        "--shapes", default="896x9728,4864x896", help="Din x Dout of linear, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    print(f"{torch.get_num_threads()} threads, native kernels: {'yes' if native.lib else 'no'}")
    dtypes = [getattr(torch, name) for name in args.dtype.split(",")]
    groups = args.groups or GROUPS
    with torch.inference_mode():
        if "linear" in groups:
            for shape in args.shapes.split(","):
                din, dout = (int(n) for n in shape.split("x"))
                for dtype in dtypes:
                    measure_linear(din, dout, dtype, [int(n) for n in args.tokens.split(",")], args.rounds)
        if "attention" in groups:
            for dtype in dtypes:
                measure_attention(dtype, args.rounds)
        if "small" in groups:
            for dtype in dtypes:
                measure_small(dtype, args.rounds)
    return 0


def best_times(candidates: dict[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Seconds of one call of each; they take turns."""
    best = dict.fromkeys(candidates, math.inf)
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / repeats)
    return best


def measure_linear(din: int, dout: int, dtype: torch.dtype, tokens: list[int], rounds: int) -> None:
    num_bytes = din * dout * dtype.itemsize
    weights = [torch.randn(dout, din, dtype=dtype) for _ in range(max(2, CYCLED_BYTES // num_bytes + 1))]
    print(f"\nlinear {din} -> {dout}, {name_of(dtype)}: GB/s of weights (GFLOP/s)")

    def over_weights(call: Callable[[torch.Tensor], object]) -> Callable[[], None]:
        def run() -> None:
            for weight in weights:
                call(weight)

        return run

    read = best_times({"read": over_weights(lambda w: w.view(torch.float32).sum())}, rounds)["read"]
    print(f"  read {num_bytes * len(weights) / read / 1e9:.1f} GB/s")
    for num_tokens in tokens:
        x = torch.randn(num_tokens, din, dtype=dtype)
        candidates: dict[str, Callable[[torch.Tensor], object]] = {
            "linear": lambda w, x=x: linear(x, w),
            "F.linear": lambda w, x=x: F.linear(x, w),
        }
        if dtype in native.codes:
            code = native.codes[dtype]
            candidates["dot"] = lambda w, x=x, code=code: linear_cpu.native_linear(linear_cpu.DOT, code, x, w, None)
            if dtype != torch.float16:
                candidates["panel"] = lambda w, x=x, code=code: linear_cpu.native_linear(
                    linear_cpu.PANEL, code, x, w, None
                )
        if dtype != torch.float16 and torch.backends.mkldnn.is_available():
            candidates["oneDNN"] = lambda w, x=x: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
        times = best_times({name: over_weights(call) for name, call in candidates.items()}, rounds)
        figures = []
        for name, seconds in times.items():
            seconds /= len(weights)
            figures.append(
                f"{name} {num_bytes / seconds / 1e9:5.1f} ({2 * num_tokens * din * dout / seconds / 1e9:4.0f})"
            )
        print(f"  T={num_tokens:<5}" + "  ".join(figures), flush=True)


def measure_attention(dtype: torch.dtype, rounds: int) -> None:
    print(f"\nattention, {NUM_HEADS} heads over {NUM_KV_HEADS} of {HEAD_DIM}, {name_of(dtype)}")
    for num_seqs, num_new, length in ((1, 1024, 1024), (8, 128, 128), (1, 128, 1024)):
        q, pages = paged(num_seqs, num_new, length, dtype)
        dense_q = torch.randn(num_seqs, NUM_HEADS, num_new, HEAD_DIM, dtype=dtype)
        dense_k = torch.randn(num_seqs, NUM_KV_HEADS, length, HEAD_DIM, dtype=dtype)
        mask = torch.ones(num_new, length, dtype=torch.bool).tril(length - num_new)
        options = {"is_causal": True} if num_new == length else {"attn_mask": mask}
        times = best_times(
            {
                "paged_attention": lambda q=q, pages=pages: paged_attention(q, *pages, scale=0.125),
                "SDPA": lambda q=dense_q, k=dense_k, options=options: F.scaled_dot_product_attention(
                    q, k, k, enable_gqa=True, **options
                ),
            },
            rounds,
        )
        flops = 4 * num_seqs * NUM_HEADS * HEAD_DIM * num_new * (length - num_new / 2)
        print(
            f"  prompt {num_seqs} x {num_new} of {length}: "
            + "  ".join(f"{n} {flops / s / 1e9:.0f} GFLOP/s" for n, s in times.items())
        )
    for num_seqs, length in ((1, 160), (1, 8192), (8, 160), (32, 160), (32, 2048)):
        q, pages = paged(num_seqs, 1, length, dtype)
        dense_q = torch.randn(num_seqs, NUM_HEADS, 1, HEAD_DIM, dtype=dtype)
        dense_k = torch.randn(num_seqs, NUM_KV_HEADS, length, HEAD_DIM, dtype=dtype)
        times = best_times(
            {
                "paged_attention": lambda q=q, pages=pages: paged_attention(q, *pages, scale=0.125),
                "SDPA": lambda q=dense_q, k=dense_k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
            },
            rounds,
            repeats=5 if length < 1000 else 1,
        )
        num_bytes = 2 * num_seqs * length * NUM_KV_HEADS * HEAD_DIM * dtype.itemsize
        print(
            f"  decode {num_seqs} x {length}: "
            + "  ".join(f"{n} {s * 1e6:.0f} us, {num_bytes / s / 1e9:.1f} GB/s" for n, s in times.items()),
            flush=True,
        )


def paged(
    num_seqs: int, num_new: int, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """q, and caches, block table, query starts and lengths of equal sequences whose pages lie in random order."""
    num_pages = -(-length // BLOCK_SIZE)
    num_blocks = num_seqs * num_pages
    caches = torch.randn(2, num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM).to(dtype)
    table = torch.randperm(num_blocks).to(torch.int32).view(num_seqs, num_pages)
    query_start = torch.arange(num_seqs + 1, dtype=torch.int32) * num_new
    q = torch.randn(num_seqs * num_new, NUM_HEADS, HEAD_DIM).to(dtype)
    return q, (caches[0], caches[1], table, query_start, torch.full((num_seqs,), length, dtype=torch.int32))


def measure_small(dtype: torch.dtype, rounds: int) -> None:
    print(f"\nmicroseconds a call, {name_of(dtype)}: native | torch path")
    for num_tokens in (1, 8, 32, 1024):
        calls = small_calls(num_tokens, dtype)
        repeats = max(3, 2000 // num_tokens)
        native_times = best_times(calls, rounds, repeats)
        codes = dict(native.codes)
        native.codes.clear()
        torch_times = best_times(calls, max(1, rounds // 2), max(1, repeats // 8))
        native.codes.update(codes)
        figures = "  ".join(f"{n} {native_times[n] * 1e6:.1f} | {torch_times[n] * 1e6:.1f}" for n in calls)
        print(f"  T={num_tokens:<5}{figures}", flush=True)


def small_calls(num_tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What runs between the products of one layer, on tensors shaped as there."""
    x, residual = (torch.randn(num_tokens, HIDDEN).to(dtype) for _ in range(2))
    weight, gate_up = torch.randn(HIDDEN).to(dtype), torch.randn(num_tokens, 2 * MLP).to(dtype)
    q_size, kv_size = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    qkv = torch.randn(num_tokens, q_size + 2 * kv_size).to(dtype)
    q, k, v = (
        part.view(num_tokens, -1, HEAD_DIM) for part in qkv.split([q_size, kv_size, kv_size], dim=1)
    )  # (T, H, K), (T, G, K) twice
    caches = torch.zeros(2, num_tokens // BLOCK_SIZE + 1, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, dtype=dtype)
    cos_sin, positions = torch.randn(num_tokens, HEAD_DIM), torch.arange(num_tokens)
    ids, table = torch.randint(0, 1000, (num_tokens,)), torch.randn(1000, HIDDEN).to(dtype)
    return {
        "rms_norm": lambda: rms_norm(x, weight, 1e-6),
        "add_rms_norm": lambda: add_rms_norm(x, residual, weight, 1e-6),
        "silu_and_mul": lambda: silu_and_mul(gate_up),
        "rope_kv_write": lambda: rope_kv_write(q, k, v, cos_sin, positions, caches[0], caches[1], positions),
        "embedding": lambda: embedding(ids, table),
    }


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
