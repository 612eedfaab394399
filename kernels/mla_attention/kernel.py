"""Owns attention over latents in Triton: one ragged kernel for prompts and single tokens alike. Not yet run on a GPU.

    out[t, h] = sum_l softmax_l(scale q[t, h] . kv[l]) kv[l, :C]

As paged attention with one kv head, except that values are the first C numbers of the keys, which are read once for both.

    grid (blocks of queries, ceil(H / BLOCK_H), splits)

A program serves BLOCK_Q tokens of one sequence for BLOCK_H heads: row m is token m // BLOCK_H, head m % BLOCK_H of its
block. Sums are float32, and the softmax runs on in powers of two.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from kernels import batch_invariance
from kernels.triton_attention import online_softmax, sequence_of_block, store_rows
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton, upcast
from kernels.triton_split_kv import choose_num_splits, merge_specialization, merge_splits, split_buffers


@triton.jit
def _attend(
    acc, row_max, row_sum, q_latent, q_rope, row_positions, cache, table_row, first, last, highest, scale,
    stride_b: tl.constexpr, stride_s: tl.constexpr, KV_RANK: tl.constexpr, ROPE_DIM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PAGE: tl.constexpr, TILE_N: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes tiles first to last, excluded, of keys below `highest` into acc (M, BLOCK_C), row_max, row_sum (M)."""
    latent_columns, rope_columns = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_P)
    for tile in range(first, last):
        positions = tile * TILE_N + tl.arange(0, TILE_N)
        readable = positions < highest if MASKED else positions >= 0
        pages = tl.load(table_row + positions // PAGE, mask=readable, other=0).to(tl.int64)
        rows = cache + (pages * stride_b + positions % PAGE * stride_s)[:, None]
        latent = tl.load(
            rows + latent_columns[None], mask=readable[:, None] & (latent_columns < KV_RANK)[None], other=0.0
        ).to(q_latent.dtype)  # fmt: skip
        rope = tl.load(
            rows + KV_RANK + rope_columns[None], mask=readable[:, None] & (rope_columns < ROPE_DIM)[None], other=0.0
        ).to(q_latent.dtype)  # fmt: skip
        scores = tl.dot(q_rope, tl.trans(rope), input_precision=PRECISION)
        scores = tl.dot(q_latent, tl.trans(latent), scores, input_precision=PRECISION)
        if MASKED:
            visible = readable[None] & (positions[None] <= row_positions[:, None])
            scores = tl.where(visible, scores, -float("inf"))
        weights, row_max, row_sum, factor = online_softmax(scores, scale, row_max, row_sum, MASKED)
        acc = tl.dot(weights.to(latent.dtype), latent, acc * factor[:, None], input_precision=PRECISION)
    return acc, row_max, row_sum


@triton.jit(
    do_not_specialize=["num_seqs", "table_stride", "num_splits"],
    do_not_specialize_on_alignment=["block_table", "query_start", "seq_lens"],
)
def mla_attention_kernel(
    q, cache, block_table, query_start, seq_lens, out, partial, partial_lse,
    num_seqs, table_stride, num_splits, scale,
    q_stride_t: tl.constexpr, q_stride_h: tl.constexpr, stride_b: tl.constexpr, stride_s: tl.constexpr,
    NUM_HEADS: tl.constexpr, KV_RANK: tl.constexpr, ROPE_DIM: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, TILE_N: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tensors as in the public call; rows of q, the cache and the table are dense. scale is in powers of two."""
    BLOCK_Q: tl.constexpr = BLOCK_M // BLOCK_H
    block, split = tl.program_id(0), tl.program_id(2)
    sequence = sequence_of_block(block, query_start, num_seqs, BLOCK_Q)
    begin = tl.load(query_start + sequence)
    num_rows = tl.load(query_start + sequence + 1) - begin
    first_row = (block - begin // BLOCK_Q - sequence) * BLOCK_Q
    if first_row >= num_rows:
        return
    computed = tl.load(seq_lens + sequence) - num_rows
    highest = computed + tl.minimum(first_row + BLOCK_Q, num_rows)
    last = tl.cdiv(highest, TILE_N)
    share = tl.cdiv(last, num_splits)
    first = split * share
    last = tl.minimum(first + share, last)
    bare_end = tl.minimum(tl.maximum((computed + first_row + 1) // TILE_N, first), last)  # below it all rows see all

    m = tl.arange(0, BLOCK_M)
    tokens, heads = first_row + m // BLOCK_H, tl.program_id(1) * BLOCK_H + m % BLOCK_H
    row_exists = (m < BLOCK_Q * BLOCK_H) & (tokens < num_rows) & (heads < NUM_HEADS)
    latent_columns, rope_columns = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_P)
    rows = (begin + tokens).to(tl.int64)
    places = q + rows[:, None] * q_stride_t + heads[:, None] * q_stride_h
    latent_exists = latent_columns < KV_RANK
    q_latent = tl.load(places + latent_columns[None], mask=row_exists[:, None] & latent_exists[None], other=0.0)
    q_rope = tl.load(
        places + KV_RANK + rope_columns[None], mask=row_exists[:, None] & (rope_columns < ROPE_DIM)[None], other=0.0
    )
    if UPCAST:
        q_latent, q_rope = q_latent.to(tl.float32), q_rope.to(tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    row_positions = computed + tokens
    table_row = block_table + sequence.to(tl.int64) * table_stride
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, q_latent, q_rope, row_positions, cache, table_row, first, bare_end, highest, scale,
        stride_b, stride_s, KV_RANK, ROPE_DIM, BLOCK_C, BLOCK_P, PAGE, TILE_N, PRECISION, False,
    )  # fmt: skip
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, q_latent, q_rope, row_positions, cache, table_row, bare_end, last, highest, scale,
        stride_b, stride_s, KV_RANK, ROPE_DIM, BLOCK_C, BLOCK_P, PAGE, TILE_N, PRECISION, True,
    )  # fmt: skip
    store_rows(
        out, partial, partial_lse, acc, row_max, row_sum, rows * NUM_HEADS + heads, latent_columns, row_exists,
        latent_exists, split, num_splits, KV_RANK, SPLITS,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """Rows of queries and keys of one tile, and what works on them. Not tuned on a GPU."""

    block_m: int
    tile_n: int
    num_warps: int
    num_stages: int


def choose_launch(rows: int, dtype: torch.dtype) -> Launch:
    """rows: query heads times the tokens of a sequence, which share the sequence's latents."""
    if dtype == torch.float32:
        return Launch(16, 16, 4, 2)
    if rows <= 16 and not batch_invariance.is_on():
        return Launch(16, 32, 4, 3)
    return Launch(64, 16, 8, 2)  # sums of 64 x 512 numbers take half of all registers


def mla_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    kv_rank: int,
    scale: float,
) -> torch.Tensor:
    """Shapes as in the public call. Raises ValueError for a scale that is not positive, or rows that are not dense."""
    if not scale > 0:
        raise ValueError(f"mla_attention takes a positive scale, got {scale}")
    if not q.stride(2) == cache.stride(2) == block_table.stride(1) == 1:
        raise ValueError("mla_attention reads rows of q, the cache and the block table whole: they must be dense")
    num_tokens, num_heads, _ = q.shape
    out = torch.empty((num_tokens, num_heads, kv_rank), dtype=q.dtype, device=q.device)
    if not num_tokens:
        return out
    rows = -(-num_tokens // len(seq_lens)) * num_heads
    launch = choose_launch(rows, q.dtype)
    sizes = _sizes(num_heads, kv_rank, q.shape[2] - kv_rank, cache.shape[1], launch)
    num_blocks = num_tokens // (launch.block_m // sizes["BLOCK_H"]) + len(seq_lens)
    head_blocks = triton.cdiv(num_heads, sizes["BLOCK_H"])
    splits = choose_num_splits(num_blocks * head_blocks, block_table.shape[1] * cache.shape[1], q.device)
    partial, partial_lse = split_buffers(out, splits)
    mla_attention_kernel[num_blocks, head_blocks, splits](
        q, cache, block_table, query_start, seq_lens, out, partial, partial_lse,
        len(seq_lens), block_table.stride(0), splits, scale * math.log2(math.e), *q.stride()[:2], *cache.stride()[:2],
        **sizes, SPLITS=splits > 1, PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32", UPCAST=upcast(q.dtype),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    if splits > 1:
        merge_splits(partial, partial_lse, out)
    return out


def _sizes(num_heads: int, kv_rank: int, rope_dim: int, page: int, launch: Launch) -> dict[str, int]:
    """What the kernel is compiled for, of a model's sizes."""
    return {
        "NUM_HEADS": num_heads, "KV_RANK": kv_rank, "ROPE_DIM": rope_dim, "PAGE": page,
        "BLOCK_C": max(16, next_power_of_2(kv_rank)), "BLOCK_P": max(16, next_power_of_2(rope_dim)),
        "BLOCK_M": launch.block_m, "BLOCK_H": min(num_heads, launch.block_m), "TILE_N": launch.tile_n,
    }  # fmt: skip


def _specialization(name: str, num_tokens: int, splits: bool) -> Specialization:
    """As DeepSeek-V2-Lite launches it for one sequence of so many tokens, with pages of 16."""
    num_heads = 16
    launch = choose_launch(num_tokens * num_heads, torch.bfloat16)
    return Specialization(
        name=name,
        kernel=mla_attention_kernel,
        types={
            **dict.fromkeys(("q", "cache", "out"), "*bf16"),
            **dict.fromkeys(("block_table", "query_start", "seq_lens"), "*i32"),
            **dict.fromkeys(("partial", "partial_lse"), "*fp32" if splits else "*bf16"),
            **dict.fromkeys(("num_seqs", "table_stride", "num_splits"), "i32"), "scale": "fp32",
        },
        constants={
            **_sizes(num_heads, 512, 64, 16, launch), "q_stride_t": num_heads * 576, "q_stride_h": 576,
            "stride_b": 16 * 576, "stride_s": 576, "SPLITS": splits, "PRECISION": "tf32", "UPCAST": False,
        },
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        max_stack_bytes=8,  # what the compiler of Triton 3.6 needs for prompts
        wgmma=launch.block_m >= 64,
    )  # fmt: skip


COMPILED = [_specialization("decode", 1, True), _specialization("prefill", 512, False), merge_specialization(512)]
