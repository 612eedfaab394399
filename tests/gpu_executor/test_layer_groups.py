"""Layers that slide share a pool with those that do not, in groups of one size; what cannot share is one group, as it is."""

from __future__ import annotations

import pytest
import torch

from gpu_executor.layer_groups import LayerGroups, group_layers
from gpu_executor.mixers.state import FixedSlots, KvCache, LatentKv, PagedKv, StateLayout

F32 = torch.float32
FULL, SLIDING = PagedKv(2, 8), PagedKv(2, 8, 64)


def periodic(num_layers: int, period: int, window: int, max_model_len: int) -> LayerGroups:
    """Every `period`-th layer sees all, as in Gemma and Cohere."""
    layouts = [PagedKv(2, 8, window if (i + 1) % period else None) for i in range(num_layers)]
    return group_layers(layouts, F32, max_model_len)


@pytest.mark.parametrize(("model", "num_memories", "num_sliding"), [
    ((26, 2, 4096, 8192), 13, 1),  # Gemma 2 2B
    ((32, 4, 4096, 131072), 8, 3),  # Command R7B
    ((26, 6, 512, 32768), 4, 6),  # Gemma 3 1B: 22 layers slide, in 24 places
    ((62, 6, 1024, 131072), 10, 6),  # Gemma 3 27B: 52 in 60
    ((27, 2, 4096, 8192), 14, 1),  # 13 that see all in 14 places, not 26 places for the 14 that slide
    ((5, 5, 8, 256), 1, 4),  # a group of four would have three empty places as long as the sequence
])  # fmt: skip
def test_groups_are_of_the_size_that_wastes_little(model: tuple[int, ...], num_memories: int, num_sliding: int) -> None:
    groups = periodic(*model)
    assert len(groups.memories) == num_memories
    assert groups.windows == (None,) + (model[2],) * num_sliding


@pytest.mark.parametrize("model", [(26, 2, 4096, 8192), (62, 6, 1024, 131072), (7, 3, 9, 256)])
def test_every_layer_has_a_place_of_its_own_in_a_group_with_its_window(model: tuple[int, ...]) -> None:
    groups = periodic(*model)
    assert len(set(groups.places)) == model[0]
    for index, (memory, group) in enumerate(groups.places):
        assert 0 <= memory < len(groups.memories)
        assert groups.windows[group] == (model[2] if (index + 1) % model[1] else None)


def test_layers_at_one_place_of_two_groups_share_a_memory() -> None:
    groups = group_layers([SLIDING, None, FULL, SLIDING, FULL], F32, 1024)
    states = groups.allocate(3, 4, 1, dtype=F32, device=torch.device("cpu"))
    kept = [state for state in states if isinstance(state, KvCache)]
    assert len(kept) == 4 and states[1] is None
    assert [state.group for state in kept] == [1, 0, 1, 0]
    assert kept[0].k is kept[1].k and kept[2].k is kept[3].k and kept[0].k is not kept[2].k
    assert kept[0].k.shape == (3, 2, 4, 8)
    assert groups.block_bytes(4, F32) == sum(tensor.nbytes for state in kept[:3:2] for tensor in state.tensors) // 3


@pytest.mark.parametrize(("layouts", "options", "window"), [
    ([SLIDING, SLIDING], {}, 64),
    ([FULL, FULL], {}, None),
    ([PagedKv(2, 8, 97), PagedKv(2, 8, 100)], {}, 100),  # little to gain
    ([SLIDING, FULL], {"max_model_len": 64}, None),  # the window is as long as any sequence
    ([SLIDING, SLIDING], {"max_model_len": 64}, None),
    ([SLIDING, PagedKv(1, 8)], {}, None),
    ([SLIDING, PagedKv(2, 16)], {}, None),
    ([SLIDING, LatentKv(16, 8)], {}, None),
    ([SLIDING, FULL, FixedSlots(96, 16, 4)], {}, None),
    ([SLIDING, FULL], {"cross": True}, None),
    ([FixedSlots(96, 16, 4)], {}, None),
    ([FixedSlots(96, 16, 4), SLIDING], {}, 64),
], ids=["all slide", "none", "windows alike", "short model", "short model, all slide", "heads", "head size", "latents", "slots",
        "cross", "no blocks", "slots beside a window"])  # fmt: skip
def test_what_cannot_share_or_need_not_is_one_group(
    layouts: list[StateLayout], options: dict[str, int | bool], window: int | None
) -> None:
    groups = group_layers(layouts, F32, **{"max_model_len": 1024, **options})
    assert groups.windows == (window,) and groups.memories == tuple(layouts)
    assert groups.places == tuple((index, 0) for index in range(len(layouts)))


def test_layers_that_read_nothing_again_use_one_memory_in_turn() -> None:
    groups = group_layers([FULL, None, FULL, PagedKv(1, 8)], F32, 1024, bidirectional=True)
    assert groups == LayerGroups((None,), (FULL, PagedKv(1, 8)), ((0, 0), None, (0, 0), (1, 0)))


@pytest.mark.parametrize(
    ("num_layers", "encoded", "num_groups", "num_memories"),
    [(40, (3, 8, 13, 18, 23, 28, 33, 38), 4, 8), (5, (1, 3), 2, 2), (33, (0,), 8, 4), (3, (0, 1, 2), 1, 3)],
    ids=["Llama 3.2 Vision", "uneven", "many others", "no others"],
)
def test_layers_that_keep_what_was_encoded_take_a_place_beside_groups_of_others(
    num_layers: int, encoded: tuple[int, ...], num_groups: int, num_memories: int
) -> None:
    groups = group_layers([FULL] * num_layers, F32, 1024, encoded=encoded)
    assert groups.windows == (None,) * num_groups and groups.memories == (FULL,) * num_memories
    others = [groups.places[index] for index in range(num_layers) if index not in encoded]
    assert len(set(others)) == len(others)
    assert all(memory < num_memories and group < num_groups for memory, group in others)
    assert [groups.places[index] for index in encoded] == [(number, 0) for number in range(len(encoded))]


def test_layers_that_keep_what_was_encoded_have_their_own_memory_where_others_are_not_alike() -> None:
    groups = group_layers([FULL, PagedKv(1, 8)], F32, 1024, encoded=(1,))
    assert groups.windows == (None,) and groups.places == ((0, 0), (1, 0))
