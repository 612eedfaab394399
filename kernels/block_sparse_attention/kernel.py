"""Owns block-sparse attention in Triton: one ragged kernel that reads only the blocks that are looked at. Not yet run on a GPU.

As paged attention, for BLOCK_M tokens of one sequence and one head, since each head looks at blocks of its own:

    grid (blocks of queries, H)

Of the blocks of SPARSE positions before the first local block of the program's first token, every row sees each STRIDE-th,
and no row another one. These are taken as if they lay side by side, in tiles of TILE_N keys. What follows, up to the last
token, is taken as it lies: tiles that every row sees whole need no mask, the others hide what is neither local nor strided.
"""

from __future__ import annotations

import math

import torch

from kernels import batch_invariance
from kernels.paged_attention.launch import choose_launch
from kernels.triton_attention import online_softmax, sequence_of_block, store_rows
from kernels.triton_runtime import Specialization, is_hopper, next_power_of_2, tl, triton, upcast


@triton.jit
def _attend(
    acc, row_max, row_sum, q, row_positions, k_head, v_head, table_row, first, last, lowest, num_keys,
    first_column, scale,
    stride_b: tl.constexpr, stride_s: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr,
    TILE_N: tl.constexpr, SPARSE: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    STRIDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes tiles first to last, excluded, of num_keys keys into acc (M, BLOCK_K), row_max, row_sum (M).

    The keys are those of blocks first_column + i STRIDE where STRIDED, else of all positions; there, where MASKED, rows see
    keys from `lowest` up to their own that are local or in those blocks.
    """
    columns = tl.arange(0, BLOCK_K)
    for tile in range(first, last):
        keys = tile * TILE_N + tl.arange(0, TILE_N)
        readable = keys < num_keys
        positions = (first_column + keys // SPARSE * STRIDE) * SPARSE + keys % SPARSE if STRIDED else keys
        pages = tl.load(table_row + positions // PAGE, mask=readable, other=0).to(tl.int64)
        places = (pages * stride_b + positions % PAGE * stride_s)[:, None] + columns[None]
        wanted = readable[:, None] & (columns < HEAD_DIM)[None]
        k = tl.load(k_head + places, mask=wanted, other=0.0).to(q.dtype)
        v = tl.load(v_head + places, mask=wanted, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        visible = readable[None]
        if MASKED:
            blocks = positions // SPARSE
            near = row_positions[:, None] // SPARSE - blocks[None] < LOCAL
            strided = (blocks + STRIDE - first_column) % STRIDE == 0
            visible = visible & (positions >= lowest)[None] & (positions[None] <= row_positions[:, None])
            visible = visible & (near | strided[None])
        scores = tl.where(visible, scores, -float("inf"))
        weights, row_max, row_sum, factor = online_softmax(scores, scale, row_max, row_sum, MASKED)
        acc = tl.dot(weights.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
    return acc, row_max, row_sum


@triton.jit(
    do_not_specialize=["num_seqs", "table_stride"],
    do_not_specialize_on_alignment=["block_table", "query_start", "seq_lens"],
)
def block_sparse_attention_kernel(
    q, k_cache, v_cache, block_table, query_start, seq_lens, out, num_seqs, table_stride, scale,
    q_stride_t: tl.constexpr, q_stride_h: tl.constexpr,
    stride_b: tl.constexpr, stride_g: tl.constexpr, stride_s: tl.constexpr,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE_N: tl.constexpr, SPARSE: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr,
    HEAD_STEP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tensors as in the public call, both caches laid out alike; rows of q, the caches and the table are dense.

    SPARSE, LOCAL and STRIDE are sparse_block_size, num_local_blocks and stride; scale is in powers of two.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    sequence = sequence_of_block(block, query_start, num_seqs, BLOCK_M)
    begin = tl.load(query_start + sequence)
    num_rows = tl.load(query_start + sequence + 1) - begin
    first_row = (block - begin // BLOCK_M - sequence) * BLOCK_M
    if first_row >= num_rows:
        return
    computed = tl.load(seq_lens + sequence) - num_rows
    first_position = computed + first_row
    last_position = computed + tl.minimum(first_row + BLOCK_M, num_rows) - 1

    tokens = first_row + tl.arange(0, BLOCK_M)
    row_exists = tokens < num_rows
    row_positions = computed + tokens
    columns = tl.arange(0, BLOCK_K)
    columns_exist = columns < HEAD_DIM
    rows = (begin + tokens).to(tl.int64)
    queries = tl.load(
        q + rows[:, None] * q_stride_t + head * q_stride_h + columns[None],
        mask=row_exists[:, None] & columns_exist[None],
        other=0.0,
    )
    if UPCAST:
        queries = queries.to(tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    kv_head = (head // GROUP).to(tl.int64)
    k_head, v_head = k_cache + kv_head * stride_g, v_cache + kv_head * stride_g
    table_row = block_table + sequence.to(tl.int64) * table_stride

    first_column = STRIDE - 1 - head * HEAD_STEP % STRIDE  # the first block j with STRIDE | j + head HEAD_STEP + 1
    local = tl.maximum(first_position // SPARSE - LOCAL + 1, 0)  # the first block that is local to some row
    num_strided = tl.cdiv(tl.maximum(local - first_column, 0), STRIDE) * SPARSE
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, queries, row_positions, k_head, v_head, table_row, 0, tl.cdiv(num_strided, TILE_N),
        0, num_strided, first_column, scale, stride_b, stride_s, HEAD_DIM, BLOCK_K, PAGE, TILE_N, SPARSE, LOCAL, STRIDE,
        PRECISION, True, False,
    )  # fmt: skip
    first, last = local * SPARSE // TILE_N, last_position // TILE_N + 1
    all_local = tl.maximum(last_position // SPARSE - LOCAL + 1, 0) * SPARSE  # from here on local to all rows
    bare = tl.minimum(tl.cdiv(all_local, TILE_N), last)
    bare_end = tl.maximum((first_position + 1) // TILE_N, bare)
    for part in tl.static_range(3):
        part_first = first if part == 0 else bare if part == 1 else bare_end
        part_last = bare if part == 0 else bare_end if part == 1 else last
        acc, row_max, row_sum = _attend(
            acc, row_max, row_sum, queries, row_positions, k_head, v_head, table_row, part_first, part_last,
            local * SPARSE, last_position + 1, first_column, scale, stride_b, stride_s, HEAD_DIM, BLOCK_K, PAGE, TILE_N, SPARSE,
            LOCAL, STRIDE, PRECISION, False, part != 1,
        )  # fmt: skip
    store_rows(
        out,
        out,
        out,
        acc,
        row_max,
        row_sum,
        rows * NUM_HEADS + head,
        columns,
        row_exists,
        columns_exist,
        0,
        1,
        HEAD_DIM,
        False,
    )


def block_sparse_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    sparse_block_size: int,
    num_local_blocks: int,
    stride: int,
    head_step: int,
) -> torch.Tensor:
    """Shapes as in the public call. Raises ValueError for a scale that is not positive, or rows that are not dense."""
    if not scale > 0:
        raise ValueError(f"block_sparse_attention takes a positive scale, got {scale}")
    if not (q.stride(2) == k_cache.stride(3) == block_table.stride(1) == 1 and k_cache.stride() == v_cache.stride()):
        raise ValueError("block_sparse_attention reads dense rows of q, the block table and caches of one layout")
    num_tokens, num_heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not num_tokens:
        return out
    if batch_invariance.is_on():  # rows of one block read strided and local keys by the first one's position
        block_table, query_start, seq_lens = batch_invariance.rows_as_sequences(
            block_table, query_start, seq_lens, num_tokens, causal=True
        )
    launch = choose_launch(num_tokens, len(seq_lens), 1, head_dim, q.dtype, hopper=is_hopper(q.device))
    block_sparse_attention_kernel[num_tokens // launch.block_m + len(seq_lens), num_heads](
        q, k_cache, v_cache, block_table, query_start, seq_lens, out,
        len(seq_lens), block_table.stride(0), scale * math.log2(math.e), *q.stride()[:2], *k_cache.stride()[:3],
        num_heads, num_heads // k_cache.shape[1], head_dim, max(16, next_power_of_2(head_dim)), k_cache.shape[2],
        launch.block_m, launch.tile_n, sparse_block_size, num_local_blocks, stride, head_step,
        "tf32x3" if q.dtype == torch.float32 else "tf32", upcast(q.dtype),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return out


def _specialization(name: str, num_tokens: int, arch: int) -> Specialization:
    """As Phi-3-small launches it for one sequence of so many tokens, with pages of 16."""
    launch = choose_launch(num_tokens, 1, 1, 128, torch.bfloat16, hopper=arch >= 90)
    return Specialization(
        name=name,
        kernel=block_sparse_attention_kernel,
        types={
            **dict.fromkeys(("q", "k_cache", "v_cache", "out"), "*bf16"),
            **dict.fromkeys(("block_table", "query_start", "seq_lens"), "*i32"),
            **dict.fromkeys(("num_seqs", "table_stride"), "i32"), "scale": "fp32",
        },
        constants={
            "q_stride_t": 48 * 128, "q_stride_h": 128, "stride_b": 8 * 16 * 128, "stride_g": 16 * 128, "stride_s": 128,
            "NUM_HEADS": 32, "GROUP": 4, "HEAD_DIM": 128, "BLOCK_K": 128, "PAGE": 16, "BLOCK_M": launch.block_m,
            "TILE_N": launch.tile_n, "SPARSE": 64, "LOCAL": 16, "STRIDE": 8, "HEAD_STEP": 1, "PRECISION": "tf32",
            "UPCAST": False,
        },
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        archs=(arch,),
        wgmma=num_tokens > 1,
    )  # fmt: skip


COMPILED = [
    _specialization(name, num_tokens, arch)
    for name, num_tokens in (("decode", 1), ("prefill", 512))
    for arch in (80, 90)
]
