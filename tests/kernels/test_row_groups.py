"""Rows come out sorted by group, in tiles that cover each of them once, whatever the distribution over groups."""

from __future__ import annotations

import pytest
import torch

from kernels.row_groups import group_rows

DISTRIBUTIONS = ["even", "one", "first", "none", "few"]


def groups_of(num_rows: int, num_groups: int, distribution: str, device: torch.device) -> torch.Tensor:
    random = torch.randint(-1, num_groups + 2, (num_rows,), generator=torch.Generator().manual_seed(0))
    return {
        "even": random,
        "one": torch.full((num_rows,), num_groups - 1),
        "first": torch.zeros(num_rows, dtype=torch.int64),
        "none": torch.full((num_rows,), -1),
        "few": random.clamp(max=1),
    }[distribution].to(device)


def check(groups: torch.Tensor, num_groups: int, tile_size: int) -> None:
    """Walks the tiles as a kernel does and finds each row once, in order, under its own group."""
    found = group_rows(groups, num_groups, tile_size)
    wanted = groups.tolist()
    ends, order = found.ends.tolist(), found.order.tolist()
    assert sorted(order) == list(range(len(wanted)))
    seen: list[tuple[int, int]] = []
    tiles = list(zip(found.tile_groups.tolist(), found.tile_starts.tolist(), strict=True))
    for group, start in tiles:
        if group >= 0:
            assert start < ends[group], "no tile is empty"
            seen += [(group, row) for row in order[start : min(ends[group], start + tile_size)]]
    assert seen == sorted((group, row) for row, group in enumerate(wanted) if 0 <= group < num_groups)
    assert order[len(seen) :] == [row for row, group in enumerate(wanted) if not 0 <= group < num_groups]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("num_rows", "num_groups", "tile_size"), [(0, 3, 16), (1, 8, 16), (63, 60, 16), (130, 5, 32), (700, 3, 16)], ids=str
)
def test_tiles_cover_each_row_once(num_rows: int, num_groups: int, tile_size: int, distribution: str) -> None:
    check(groups_of(num_rows, num_groups, distribution, torch.device("cpu")), num_groups, tile_size)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("num_rows", "num_groups", "tile_size"),
    [(0, 3, 16), (1, 8, 16), (63, 60, 16), (600, 5, 32), (1100, 3, 64)],
    ids=str,
)
def test_the_triton_kernel_covers_each_row_once(
    triton_device: torch.device, num_rows: int, num_groups: int, tile_size: int, distribution: str
) -> None:
    groups = groups_of(num_rows, num_groups, distribution, triton_device)
    check(groups, num_groups, tile_size)
    check(groups.int(), num_groups, tile_size)


def test_wrong_arguments_are_refused() -> None:
    for groups, num_groups, tile_size in ((torch.zeros(2, 2), 1, 1), (torch.zeros(2), 0, 1), (torch.zeros(2), 1, 0)):
        with pytest.raises(ValueError, match="group_rows takes"):
            group_rows(groups, num_groups, tile_size)
