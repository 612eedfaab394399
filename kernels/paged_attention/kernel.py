"""Owns paged attention in Triton: one ragged kernel for prompts and single tokens alike. Not yet run on a GPU.

out[t, h] = sum_l softmax_l(scale q[t, h] . k[l, g]) v[l, g], with the row's mask and biases, as FlashAttention-2 computes
it (Dao, 2023): keys in tiles, sums in float32, the softmax running on in powers of two.

    grid (blocks of queries, G, splits)

A program serves BLOCK_Q tokens of one sequence for all query heads of one kv head, so that each key is read once for
them: row m is token m // GROUP, head m % GROUP. Its keys come in tiles of TILE_N, whatever the size of a page. Tiles
that no row sees are never read, those that every row sees need no mask: [first, a) masked, [a, b) bare, [b, last) masked.
"""

from __future__ import annotations

import math

import torch

from kernels.paged_attention.launch import Launch, choose_launch
from kernels.triton_attention import online_softmax, sequence_of_block, store_rows
from kernels.triton_fp8 import FP8_BITS_SCALE, from_fp8
from kernels.triton_runtime import Specialization, is_hopper, next_power_of_2, tl, triton, upcast
from kernels.triton_split_kv import choose_num_splits, merge_specialization, merge_splits, split_buffers


@triton.jit
def _attend(
    acc, row_max, row_sum, q, row_positions, slopes,
    k_head, v_head, table_row, first, last, lowest, length, scale, cap,
    k_stride_b: tl.constexpr, k_stride_s: tl.constexpr, v_stride_b: tl.constexpr, v_stride_s: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr, TILE_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, ALIBI: tl.constexpr, FP8: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes tiles first to last, excluded, of keys in [lowest, length) into acc (M, BLOCK_K), row_max, row_sum (M)."""
    columns = tl.arange(0, BLOCK_K)
    for tile in range(first, last):
        positions = tile * TILE_N + tl.arange(0, TILE_N)
        if MASKED:
            readable = (positions >= lowest) & (positions < length)
            pages = tl.load(table_row + positions // PAGE, mask=readable, other=0).to(tl.int64)
        else:
            pages = tl.load(table_row + positions // PAGE).to(tl.int64)
        k_rows = k_head + (pages * k_stride_b + positions % PAGE * k_stride_s)[:, None] + columns[None]
        v_rows = v_head + (pages * v_stride_b + positions % PAGE * v_stride_s)[:, None] + columns[None]
        if MASKED or HEAD_DIM != BLOCK_K:
            wanted = (columns < HEAD_DIM)[None] & ((positions >= 0)[:, None] if not MASKED else readable[:, None])
            k, v = tl.load(k_rows, mask=wanted, other=0), tl.load(v_rows, mask=wanted, other=0)
        else:
            k, v = tl.load(k_rows), tl.load(v_rows)
        if FP8:
            k, v = from_fp8(k), from_fp8(v)
        k, v = k.to(q.dtype), v.to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAPPED:  # scale is then 2 / cap of the others', and the cap that of powers of two
            scores = cap - 2 * cap / (tl.exp2(scores * scale) + 1)
        elif ALIBI:
            scores = scores * scale
        if ALIBI:
            scores += slopes[:, None] * (positions[None] - row_positions[:, None])
        if MASKED:
            visible = readable[None]
            if CAUSAL:
                visible = visible & (positions[None] <= row_positions[:, None])
            if WINDOW > 0:
                visible = visible & (row_positions[:, None] - positions[None] < WINDOW)
                if not CAUSAL:
                    visible = visible & (positions[None] - row_positions[:, None] < WINDOW)
            scores = tl.where(visible, scores, -float("inf"))
        unit = 1.0 if CAPPED or ALIBI else scale
        weights, row_max, row_sum, factor = online_softmax(scores, unit, row_max, row_sum, MASKED)
        acc = tl.dot(weights.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
    return acc, row_max, row_sum


@triton.jit(
    do_not_specialize=["num_seqs", "table_stride", "num_splits"],
    do_not_specialize_on_alignment=["block_table", "query_start", "seq_lens", "alibi_slopes", "sinks"],
)
def paged_attention_kernel(
    q, k_cache, v_cache, block_table, query_start, seq_lens, alibi_slopes, sinks, out, partial, partial_lse,
    num_seqs, table_stride, num_splits, scale, cap, v_scale,
    q_stride_t: tl.constexpr, q_stride_h: tl.constexpr,
    k_stride_b: tl.constexpr, k_stride_g: tl.constexpr, k_stride_s: tl.constexpr,
    v_stride_b: tl.constexpr, v_stride_g: tl.constexpr, v_stride_s: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE_N: tl.constexpr, SPLITS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    FP8: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tensors as in the public call; rows of q, the caches and the table are dense. WINDOW 0 is none.

    scale and cap are in powers of two, and the scores of fp8 keys come scaled by FP8_BITS_SCALE.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = sequence_of_block(block, query_start, num_seqs, BLOCK_Q)
    begin = tl.load(query_start + sequence)
    num_rows = tl.load(query_start + sequence + 1) - begin
    first_row = (block - begin // BLOCK_Q - sequence) * BLOCK_Q
    if first_row >= num_rows:
        return
    length = tl.load(seq_lens + sequence)
    first_position = length - num_rows + first_row
    last_position = length - num_rows + tl.minimum(first_row + BLOCK_Q, num_rows) - 1

    # Keys that some row sees are in [lowest, highest); tiles that all rows see whole are in [bare, bare_end).
    lowest, highest, bare, bare_end = 0, length, 0, length // TILE_N
    if CAUSAL:
        highest = last_position + 1
        bare_end = (first_position + 1) // TILE_N
    if WINDOW > 0:
        lowest = tl.maximum(first_position - WINDOW + 1, 0)
        bare = tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), TILE_N)
        if not CAUSAL:
            highest = tl.minimum(length, last_position + WINDOW)
            bare_end = tl.minimum(length, first_position + WINDOW) // TILE_N
    first, last = lowest // TILE_N, tl.cdiv(highest, TILE_N)
    share = tl.cdiv(last - first, num_splits)
    first += split * share
    last = tl.minimum(first + share, last)
    bare = tl.minimum(tl.maximum(bare, first), last)
    bare_end = tl.minimum(tl.maximum(bare_end, bare), last)

    m = tl.arange(0, BLOCK_M)
    tokens, heads = first_row + m // GROUP, kv_head * GROUP + m % GROUP
    row_exists = (m < BLOCK_Q * GROUP) & (tokens < num_rows)
    columns = tl.arange(0, BLOCK_K)
    columns_exist = columns < HEAD_DIM
    rows = (begin + tokens).to(tl.int64)
    places = q + rows[:, None] * q_stride_t + heads[:, None] * q_stride_h + columns[None]
    queries = tl.load(places, mask=row_exists[:, None] & columns_exist[None], other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if SINKS and split == 0:  # a key of that score whose value is zero
        row_max = tl.load(sinks + heads, mask=row_exists, other=0.0).to(tl.float32) * LOG2_E
        row_sum += 1.0
    slopes = row_sum
    if ALIBI:
        slopes = tl.load(alibi_slopes + heads, mask=row_exists, other=0.0).to(tl.float32) * LOG2_E
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    row_positions = length - num_rows + tokens
    k_head, v_head = k_cache + kv_head.to(tl.int64) * k_stride_g, v_cache + kv_head.to(tl.int64) * v_stride_g
    table_row = block_table + sequence.to(tl.int64) * table_stride
    if WINDOW > 0:
        acc, row_max, row_sum = _attend(
            acc, row_max, row_sum, queries, row_positions, slopes,
            k_head, v_head, table_row, first, bare, lowest, highest, scale, cap,
            k_stride_b, k_stride_s, v_stride_b, v_stride_s, HEAD_DIM, BLOCK_K, PAGE, TILE_N,
            CAUSAL, WINDOW, CAPPED, ALIBI, FP8, PRECISION, True,
        )  # fmt: skip
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, queries, row_positions, slopes,
        k_head, v_head, table_row, bare, bare_end, lowest, highest, scale, cap,
        k_stride_b, k_stride_s, v_stride_b, v_stride_s, HEAD_DIM, BLOCK_K, PAGE, TILE_N,
        CAUSAL, WINDOW, CAPPED, ALIBI, FP8, PRECISION, False,
    )  # fmt: skip
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, queries, row_positions, slopes,
        k_head, v_head, table_row, bare_end, last, lowest, highest, scale, cap,
        k_stride_b, k_stride_s, v_stride_b, v_stride_s, HEAD_DIM, BLOCK_K, PAGE, TILE_N,
        CAUSAL, WINDOW, CAPPED, ALIBI, FP8, PRECISION, True,
    )  # fmt: skip
    if FP8:
        acc *= v_scale
    store_rows(
        out, partial, partial_lse, acc, row_max, row_sum, rows * (NUM_KV_HEADS * GROUP) + heads, columns, row_exists,
        columns_exist, split, num_splits, HEAD_DIM, SPLITS,
    )  # fmt: skip


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    causal: bool,
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """Shapes as in the public call. Raises ValueError for a scale that is not positive, or rows that are not dense."""
    if not scale * k_scale > 0:
        raise ValueError(f"paged_attention takes a positive scale, got {scale} times {k_scale} of the keys")
    if not q.stride(2) == k_cache.stride(3) == v_cache.stride(3) == block_table.stride(1) == 1:
        raise ValueError("paged_attention reads rows of q, the caches and the block table whole: they must be dense")
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, page = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not num_tokens:
        return out
    launch = choose_launch(num_tokens, len(seq_lens), group, head_dim, q.dtype, hopper=is_hopper(q.device))
    num_blocks = num_tokens // (launch.block_m // group) + len(seq_lens)
    splits = choose_num_splits(num_blocks * num_kv_heads, block_table.shape[1] * page, q.device)
    partial, partial_lse = split_buffers(out, splits)
    fp8 = k_cache.dtype == torch.float8_e4m3fn
    if fp8:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
        scale, v_scale = scale * k_scale * FP8_BITS_SCALE, v_scale * FP8_BITS_SCALE
    scale_log2 = scale * math.log2(math.e)
    paged_attention_kernel[num_blocks, num_kv_heads, splits](
        q, k_cache, v_cache, block_table, query_start, seq_lens, alibi_slopes, sinks, out, partial, partial_lse,
        len(seq_lens), block_table.stride(0), splits,
        scale_log2 if softcap is None else 2 * scale_log2 / softcap,
        0.0 if softcap is None else softcap * math.log2(math.e), v_scale,
        *q.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3],
        num_kv_heads, group, head_dim, max(16, next_power_of_2(head_dim)), page, launch.block_m, launch.tile_n, splits > 1,
        causal, window or 0, softcap is not None, alibi_slopes is not None, sinks is not None,
        fp8, "tf32x3" if q.dtype == torch.float32 else "tf32", upcast(q.dtype),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    if splits > 1:
        merge_splits(partial, partial_lse, out)
    return out


def _specialization(
    name: str,
    launch: Launch,
    *,
    kind: str = "bf16",
    cache: str = "*bf16",
    archs: tuple[int, ...],
    wgmma: bool = False,
    max_stack_bytes: int = 0,
    **constants: object,
) -> Specialization:
    """As the public call launches it for caches of eight kv heads in pages of 16."""
    merged = {
        "GROUP": 4, "HEAD_DIM": 128, "SPLITS": False, "CAUSAL": True, "WINDOW": 0, "CAPPED": False, "ALIBI": False,
        "SINKS": False, "FP8": cache == "*u8", "PRECISION": "tf32", "UPCAST": False, "NUM_KV_HEADS": 8, "PAGE": 16,
    } | constants  # fmt: skip
    head_dim, group = merged["HEAD_DIM"], merged["GROUP"]
    given = [name for name, flag in (("alibi_slopes", "ALIBI"), ("sinks", "SINKS")) if merged[flag]]
    absent = {name: None for name in ("alibi_slopes", "sinks") if name not in given}
    page_stride = 8 * 16 * head_dim
    split = "*fp32" if merged["SPLITS"] else f"*{kind}"
    return Specialization(
        name=name,
        kernel=paged_attention_kernel,
        types={
            **dict.fromkeys(("q", "out"), f"*{kind}"), **dict.fromkeys(("k_cache", "v_cache"), cache),
            **dict.fromkeys(("block_table", "query_start", "seq_lens"), "*i32"), **dict.fromkeys(given, "*fp32"),
            **dict.fromkeys(("partial", "partial_lse"), split), **dict.fromkeys(("num_seqs", "table_stride", "num_splits"), "i32"),
            **dict.fromkeys(("scale", "cap", "v_scale"), "fp32"),
        },
        constants={
            **merged, **absent, "BLOCK_K": max(16, next_power_of_2(head_dim)), "BLOCK_M": launch.block_m,
            "TILE_N": launch.tile_n, "q_stride_t": (8 * group + 16) * head_dim, "q_stride_h": head_dim,
            **dict.fromkeys(("k_stride_b", "v_stride_b"), page_stride),
            **dict.fromkeys(("k_stride_g", "v_stride_g"), 16 * head_dim),
            **dict.fromkeys(("k_stride_s", "v_stride_s"), head_dim),
        },
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        archs=archs,
        wgmma=wgmma,
        max_stack_bytes=max_stack_bytes,
    )  # fmt: skip


def _with_launches(
    name: str, num_tokens: int, *, dtype: torch.dtype = torch.bfloat16, **constants: object
) -> list[Specialization]:
    """For one sequence of so many tokens on Ampere and on Hopper, which may take different tiles."""
    sizes = (num_tokens, 1, constants.get("GROUP", 4), constants.get("HEAD_DIM", 128), dtype)
    return [
        _specialization(name, choose_launch(*sizes, hopper=arch >= 90), archs=(arch,), **constants) for arch in (80, 90)
    ]


COMPILED = [
    *_with_launches("decode", 1, SPLITS=True),
    *_with_launches("decode-fp8", 1, cache="*u8", max_stack_bytes=8),  # the compiler stops at 168 registers
    *_with_launches("decode-K64-sinks", 1, HEAD_DIM=64, GROUP=8, SINKS=True, WINDOW=128),
    *_with_launches("decode-K256-capped", 1, HEAD_DIM=256, GROUP=2, CAPPED=True, WINDOW=4096),
    *_with_launches("mixed", 16),
    *_with_launches("prefill", 512, wgmma=True),
    *_with_launches("prefill-fp8", 512, cache="*u8", wgmma=True),
    *_with_launches("prefill-K80-alibi", 512, HEAD_DIM=80, ALIBI=True, wgmma=True),
    *_with_launches("prefill-K256-capped", 512, HEAD_DIM=256, GROUP=2, CAPPED=True, WINDOW=4096, wgmma=True),
    *_with_launches("prefill-f32", 512, dtype=torch.float32, kind="fp32", cache="*fp32", PRECISION="tf32x3"),
    *_with_launches("encoder", 512, HEAD_DIM=64, GROUP=1, CAUSAL=False, wgmma=True),
    merge_specialization(128),
]
