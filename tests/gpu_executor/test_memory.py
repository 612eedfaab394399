"""Memory is shared out among running sequences, snapshots of their states, and blocks; what does not fit is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu_executor.config import ExecutorConfig
from gpu_executor.layer_groups import group_layers
from gpu_executor.memory import num_kv_blocks, num_snapshot_slots
from gpu_executor.mixers.state import FixedSlots, PagedKv, StateLayout

CPU, F32 = torch.device("cpu"), torch.float32
SLOTS, KV = FixedSlots(96, 16, 4), PagedKv(2, 8)
SLOT_BYTES, TOKEN_BYTES = SLOTS.bytes_per_sequence(F32), KV.bytes_per_token(F32)


def sizes(
    budget: int, *layouts: StateLayout | None, max_model_len: int = 64, max_chunk: int = 1024, **options: Any
) -> tuple[int | None, int]:
    """(snapshots, blocks) for ten sequences and blocks of 16 tokens."""
    config = ExecutorConfig(model="m", max_num_seqs=10, kv_cache_memory_bytes=budget, **options)
    groups = group_layers(layouts, F32, max_model_len)
    snapshots = num_snapshot_slots(config, groups, F32, max_model_len, CPU)
    blocks = num_kv_blocks(config, groups, F32, max_model_len, 0, max_chunk, CPU, num_snapshots=snapshots or 0)
    return snapshots, blocks


def test_attention_alone_has_no_snapshots() -> None:
    assert sizes(1 << 30, KV, None) == (None, 40)
    assert sizes(7 * 16 * TOKEN_BYTES, KV) == (None, 7)


def test_states_alone_leave_the_rest_to_snapshots() -> None:
    assert sizes(1 << 30, SLOTS, SLOTS) == (20, 40)
    assert sizes(2 * 14 * SLOT_BYTES, SLOTS, SLOTS) == (4, 40)
    assert sizes(10 * SLOT_BYTES, SLOTS) == (0, 40)
    assert sizes(1 << 30, SLOTS, enable_prefix_caching=False) == (0, 40)


def test_blocks_that_hold_nothing_are_bounded() -> None:
    assert sizes(1 << 30, SLOTS, max_model_len=1 << 20)[1] == 1 << 18
    assert sizes(1 << 30, SLOTS, max_model_len=1 << 24)[1] == 1 << 20  # one sequence needs as many


def test_states_and_kv_share_the_rest() -> None:
    left = 8 * SLOT_BYTES
    snapshots, blocks = sizes(10 * SLOT_BYTES + 80 * TOKEN_BYTES + left, SLOTS, KV)
    assert snapshots == 2 and blocks == (80 * TOKEN_BYTES + 6 * SLOT_BYTES) // (16 * TOKEN_BYTES)


def test_snapshots_leave_room_for_the_longest_sequence() -> None:
    snapshots, blocks = sizes(10 * SLOT_BYTES + 64 * TOKEN_BYTES, SLOTS, KV)
    assert (snapshots, blocks) == (0, 4)
    with pytest.raises(ValueError, match="one sequence of max_model_len 64 needs"):
        sizes(10 * SLOT_BYTES + 63 * TOKEN_BYTES, SLOTS, KV)


def test_sequences_whose_states_do_not_fit_are_said() -> None:
    with pytest.raises(ValueError, match=r"state of 10 sequences .* lower --max-num-seqs"):
        sizes(10 * SLOT_BYTES - 1, SLOTS)


def test_blocks_of_groups_are_as_large_as_one_of_them_and_a_sequence_needs_fewer_where_it_slides() -> None:
    mixed = (PagedKv(2, 8, 32), KV) * 2
    held = 1024 // 16 + (2 + 2 + 256 // 16 - 1)  # whole, and the window with a chunk
    budget = (held - 1) * 16 * 2 * TOKEN_BYTES
    lengths = {"max_model_len": 1024, "max_chunk": 256}
    with pytest.raises(
        ValueError, match=f"{held - 1} blocks of 16 tokens; one sequence of .* needs {held}, .*batched-tokens"
    ):
        sizes(budget, *mixed, **lengths)
    assert sizes(budget + 16 * 2 * TOKEN_BYTES, *mixed, **lengths) == (None, held)
    assert sizes(1 << 30, *mixed, **lengths) == (None, 10 * held)
