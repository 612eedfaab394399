"""Owns the sort of rows by group on a GPU: a counting sort, stable, so that the same rows always lie in the same order.

Rows go in chunks, one program each. Programs first count their rows of each group; then each adds up all counts, which
tells where its rows of a group begin, and puts them there. A single chunk, every decode step, takes one launch. Not yet run
on a GPU.
"""

from __future__ import annotations

import torch

from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_CHUNK = 512
_TILES = 16  # looked up at a time
_COUNTS = 8  # chunks whose counts are added up at a time


@triton.jit
def _load_groups(groups, row, num_rows, num_groups):
    """Of each row, -1 for none."""
    group = tl.load(groups + row, row < num_rows, -1).to(tl.int32)
    return tl.where(group < num_groups, group, -1)


@triton.jit
def _count(groups, counts, num_rows, num_groups, CHUNK: tl.constexpr, GROUPS: tl.constexpr, SUB: tl.constexpr):
    """counts (chunks, num_groups) int32. GROUPS is a power of two, SUB how many rows are looked at at a time. Grid: chunks."""
    chunk = tl.program_id(0)
    group = tl.arange(0, GROUPS)
    total = tl.zeros((GROUPS,), tl.int32)
    for first in range(0, CHUNK, SUB):
        row = chunk * CHUNK + first + tl.arange(0, SUB)
        of_row = _load_groups(groups, row, num_rows, num_groups)
        total += tl.sum((of_row[:, None] == group[None, :]).to(tl.int32), 0)
    tl.store(counts + chunk * num_groups + group, total, group < num_groups)


@triton.jit
def _place(
    groups,
    counts,
    order,
    ends,
    tile_groups,
    tile_starts,
    num_rows,
    num_groups,
    num_chunks,
    num_tiles,
    tile_size,
    ALONE: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    SUB: tl.constexpr,
    TILES: tl.constexpr,
    COUNTS: tl.constexpr,
):
    """Writes all of RowGroups. ALONE says that there is one chunk, whose counts nobody has written yet. Grid: chunks."""
    chunk = tl.program_id(0)
    group = tl.arange(0, GROUPS)
    total, before = tl.zeros((GROUPS,), tl.int32), tl.zeros((GROUPS,), tl.int32)
    if ALONE:
        for first in range(0, CHUNK, SUB):
            row = first + tl.arange(0, SUB)
            of_row = _load_groups(groups, row, num_rows, num_groups)
            total += tl.sum((of_row[:, None] == group[None, :]).to(tl.int32), 0)
    else:
        for first in range(0, num_chunks, COUNTS):
            other = first + tl.arange(0, COUNTS)[:, None]
            inside = (other < num_chunks) & (group < num_groups)[None, :]
            count = tl.load(counts + other * num_groups + group[None, :], inside, 0)
            total += tl.sum(count, 0)
            before += tl.sum(tl.where(other < chunk, count, 0), 0)
    end = tl.cumsum(total, 0)
    start = end - total
    if chunk == 0:
        tl.store(ends + group, end, group < num_groups)

    place = start + before  # of this chunk's next row of each group
    outside = tl.sum(total, 0) + chunk * CHUNK - tl.sum(before, 0)  # of its next row of none
    for first in range(0, CHUNK, SUB):
        row = chunk * CHUNK + first + tl.arange(0, SUB)
        of_row = _load_groups(groups, row, num_rows, num_groups)
        member = (of_row[:, None] == group[None, :]).to(tl.int32)
        earlier = tl.cumsum(member, 0) - member  # rows of its group before a row
        grouped = tl.sum(member, 1)
        to = tl.sum(member * (place[None, :] + earlier), 1)
        to = tl.where(grouped != 0, to, outside + tl.cumsum(1 - grouped, 0) - 1)
        tl.store(order + to, row, row < num_rows)
        place += tl.sum(member, 0)
        outside += tl.sum(1 - grouped, 0)

    tiles = (total + tile_size - 1) // tile_size
    tile_end = tl.cumsum(tiles, 0)
    # A tile's first place is this of its group plus tile_size for each tile before it.
    origin = start - (tile_end - tiles) * tile_size
    num_used = tl.sum(tiles, 0)
    for first in range(chunk * TILES, num_tiles, num_chunks * TILES):
        tile = first + tl.arange(0, TILES)
        of_tile = tl.sum((tile_end[None, :] <= tile[:, None]).to(tl.int32), 1)
        begin = tl.sum(tl.where(of_tile[:, None] == group[None, :], origin[None, :], 0), 1) + tile * tile_size
        used = tile < num_used
        tl.store(tile_groups + tile, tl.where(used, of_tile, -1), tile < num_tiles)
        tl.store(tile_starts + tile, tl.where(used, begin, 0), tile < num_tiles)


def group_rows(
    groups: torch.Tensor, num_groups: int, tile_size: int, num_tiles: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """groups (P) -> order (P), ends (G), tile_groups, tile_starts (num_tiles)."""
    groups, num_rows = groups.contiguous(), len(groups)
    order, ends, tile_groups, tile_starts = (
        groups.new_empty(size, dtype=torch.int32) for size in (num_rows, num_groups, num_tiles, num_tiles)
    )
    num_chunks = max(1, triton.cdiv(num_rows, _CHUNK))
    tile = _tile(num_groups)
    counts = None
    if num_chunks > 1:
        counts = groups.new_empty((num_chunks, num_groups), dtype=torch.int32)
        _count[(num_chunks,)](groups, counts, num_rows, num_groups, **tile, num_warps=_num_warps(num_groups))
    _place[(num_chunks,)](
        groups, counts, order, ends, tile_groups, tile_starts, num_rows, num_groups, num_chunks, num_tiles, tile_size,
        ALONE=num_chunks == 1, **tile, TILES=_TILES, COUNTS=_COUNTS,
        num_warps=_num_warps(num_groups),
    )  # fmt: skip
    return order, ends, tile_groups, tile_starts


def _tile(num_groups: int) -> dict[str, int]:
    """Rows and groups that a program compares at a time: 2,048 pairs of them."""
    padded = next_power_of_2(num_groups)
    return {"CHUNK": _CHUNK, "GROUPS": padded, "SUB": min(64, max(4, 2048 // padded))}


def _num_warps(num_groups: int) -> int:
    return 4 if num_groups <= 256 else 8


_COUNTERS = ("num_rows", "num_groups", "num_chunks", "num_tiles", "tile_size")
_TABLES = ("counts", "order", "ends", "tile_groups", "tile_starts")


def _specialization(num_groups: int, index: str, *, alone: bool) -> Specialization:
    return Specialization(
        name=f"place-G{num_groups}{'-alone' if alone else ''}",
        kernel=_place,
        types={"groups": f"*{index}", **dict.fromkeys(_TABLES[alone:], "*i32"), **dict.fromkeys(_COUNTERS, "i32")},
        constants={"ALONE": alone, **_tile(num_groups), "TILES": _TILES, "COUNTS": _COUNTS}
        | ({"counts": None} if alone else {}),
        num_warps=_num_warps(num_groups),
    )


COMPILED = [
    _specialization(8, "i32", alone=True),
    _specialization(60, "i64", alone=True),
    _specialization(256, "i64", alone=True),
    _specialization(512, "i64", alone=True),
    _specialization(256, "i64", alone=False),
    Specialization(
        name="count-G256",
        kernel=_count,
        types={"groups": "*i64", "counts": "*i32", "num_rows": "i32", "num_groups": "i32"},
        constants=_tile(256),
    ),
]
