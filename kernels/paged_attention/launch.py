"""Owns how large the tiles of attention are: what keeps all numbers in registers, as test_aot sees it. Not tuned on a GPU."""

from __future__ import annotations

import dataclasses

import torch

from kernels import batch_invariance
from kernels.triton_runtime import next_power_of_2


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """Rows of queries and keys of one tile, and what works on them."""

    block_m: int
    tile_n: int
    num_warps: int
    num_stages: int


# By the padded head dim, of few rows of queries (16), some and many. Hopper's accumulators lie apart from the operands,
# which leaves registers for larger tiles.
_AMPERE = {
    64: (Launch(16, 128, 4, 3), Launch(64, 64, 4, 3), Launch(128, 64, 8, 3)),
    128: (Launch(16, 64, 4, 3), Launch(64, 32, 4, 3), Launch(128, 32, 8, 3)),
    256: (Launch(16, 32, 4, 3), Launch(64, 32, 8, 3), Launch(64, 32, 8, 3)),
}
_HOPPER = {
    64: _AMPERE[64],
    128: (Launch(16, 64, 4, 3), Launch(64, 64, 4, 3), Launch(128, 64, 8, 3)),
    256: (Launch(16, 32, 4, 3), Launch(64, 32, 8, 3), Launch(128, 32, 8, 2)),
}
_FLOAT32 = {
    64: (Launch(16, 32, 4, 2), Launch(32, 32, 4, 2), Launch(32, 32, 4, 2)),
    128: (Launch(16, 32, 4, 2), Launch(32, 32, 4, 2), Launch(32, 32, 4, 2)),
    256: (Launch(16, 16, 4, 2), Launch(16, 16, 4, 2), Launch(16, 16, 4, 2)),
}


def choose_launch(
    num_tokens: int, num_seqs: int, group: int, head_dim: int, dtype: torch.dtype, *, hopper: bool
) -> Launch:
    """From what the host knows of a batch: how many query heads (group) of how many tokens share a sequence's keys.

    Where a row must not depend on its batch, one for all: tiles of other keys add up in another order.
    """
    table = _FLOAT32 if dtype == torch.float32 else _HOPPER if hopper else _AMPERE
    rows = 64 if batch_invariance.is_on() else -(-num_tokens // num_seqs) * group
    launch = table[min(max(next_power_of_2(head_dim), 64), 256)][0 if rows <= 16 else 1 if rows <= 64 else 2]
    return dataclasses.replace(launch, block_m=max(launch.block_m, next_power_of_2(group)))
