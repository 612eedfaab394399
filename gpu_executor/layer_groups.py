"""Owns which layers share a block table, and which of them share a memory.

Layers that slide read the last blocks of a sequence only, those that do not read all of them. Where a model has both, layers
with the same window are in groups of equally many; each group has block tables of its own, and layer number j of every
group lies in memory j. So one pool of blocks serves all groups: a block is some tokens' KV in one layer of each memory.

    Gemma 2, 26 layers     memory 0   memory 1   …  memory 12
    group 0, sees all      layer 1    layer 3    …  layer 25     a sequence's table: every block
    group 1, slides        layer 0    layer 2    …  layer 24     a sequence's table: the window's blocks, of the same pool

Where some layers keep nothing but what was encoded (of media, say), in blocks of yet another table, the others are in groups of
as many: so those blocks take no memory of layers that have no use for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from gpu_executor.mixers.state import KvCache, PagedKv, State, StateLayout

_MOST_GROUPS = 8  # beside layers that keep what was encoded
_GROUP_COST = (
    1 / 50
)  # what one group less is worth, as a share of memory: each has tables to write and to copy in every step


@dataclasses.dataclass(frozen=True, slots=True)
class LayerGroups:
    """Where the state of each layer lies. The first group's layers see furthest."""

    windows: tuple[int | None, ...]  # of each group: keys that a query sees; None if it sees all
    memories: tuple[StateLayout, ...]
    places: tuple[tuple[int, int] | None, ...]  # of each layer: its memory and its group; None if it keeps nothing

    def block_bytes(self, block_size: int, dtype: torch.dtype) -> int:
        """Memory of one block of the pool."""
        return block_size * sum(layout.bytes_per_token(dtype) for layout in self.memories)

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        """Memory of one sequence that runs, beside its blocks."""
        return sum(layout.bytes_per_sequence(dtype) for layout in self.memories)

    def allocate(
        self, num_blocks: int, block_size: int, num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> list[State | None]:
        """The state of each layer, with undefined content."""
        memories = [
            layout.allocate(num_blocks, block_size, num_slots, dtype=dtype, device=device) for layout in self.memories
        ]
        states: list[State | None] = []
        for place in self.places:
            state = None if place is None else memories[place[0]]
            if place is not None and place[1] > 0:
                assert isinstance(state, KvCache)
                state = dataclasses.replace(state, group=place[1])
            states.append(state)
        return states


def group_layers(
    layouts: Iterable[StateLayout | None],
    dtype: torch.dtype,
    max_model_len: int,
    *,
    bidirectional: bool = False,
    cross: bool = False,
    encoded: tuple[int, ...] = (),
) -> LayerGroups:
    """The groups of a model's layers, given what each one keeps.

    `bidirectional`: nothing is read again in a later step, so that layers use one memory, one after the other. `cross`:
    layers keep an encoder's output as well, all of it in blocks that one table names. `encoded`: these layers keep nothing
    else, so that each of their blocks can be one of other layers, which are in groups of as many.

    All layers are one group, with the widest window, where there is nothing to gain, and where blocks cannot change hands:
    with cross attention, with latents, with states in slots, with layers whose numbers or sizes of heads differ.
    """
    layouts = tuple(layouts)
    kept = [layout for layout in layouts if layout is not None]
    if bidirectional:
        memories = tuple(dict.fromkeys(kept))
        places = (None if layout is None else (memories.index(layout), 0) for layout in layouts)
        return LayerGroups((None,), memories, tuple(places))
    if encoded and len(set(kept)) == 1 and isinstance(kept[0], PagedKv) and kept[0].window is None:
        return _beside_encoded(layouts, kept[0], encoded)
    layers: dict[int, list[int]] = {}  # by how many tokens they read at most
    for index, layout in enumerate(layouts):
        if layout is not None and layout.bytes_per_token(dtype):
            layers.setdefault(min(layout.window or max_model_len, max_model_len), []).append(index)
    alike = {dataclasses.replace(layout, window=None) for layout in kept if isinstance(layout, PagedKv)}
    if not cross and len(layers) > 1 and len(alike) == 1 and all(isinstance(layout, PagedKv) for layout in kept):
        groups = _choose(layers)
        if len(groups) > 1:
            return _placed(groups, alike.pop(), len(layouts), max_model_len)
    window = _window(max(layers, default=max_model_len), max_model_len)
    ids = iter(range(len(kept)))
    return LayerGroups((window,), tuple(kept), tuple(None if layout is None else (next(ids), 0) for layout in layouts))


def _beside_encoded(layouts: tuple[StateLayout | None, ...], memory: PagedKv, encoded: tuple[int, ...]) -> LayerGroups:
    """Groups of layers that see all, none much larger than the group of those that keep what was encoded."""
    others = [index for index, layout in enumerate(layouts) if layout is not None and index not in encoded]
    size = max(len(encoded), -(-len(others) // _MOST_GROUPS))
    places: list[tuple[int, int] | None] = [None] * len(layouts)
    for number, index in enumerate(others):
        places[index] = (number % size, number // size)
    for number, index in enumerate(encoded):
        places[index] = (number, 0)
    num_groups = max(1, -(-len(others) // size))
    return LayerGroups((None,) * num_groups, (memory,) * size, tuple(places))


def _choose(layers: dict[int, list[int]]) -> list[tuple[int, list[int]]]:
    """Groups, each with the tokens that its layers read, so that the longest sequence takes little memory and they are few."""
    furthest, num_layers = max(layers), sum(map(len, layers.values()))
    best, least = [(furthest, [])], furthest * num_layers * (1 + _GROUP_COST)  # one group, whoever reads less
    for size in range(1, max(map(len, layers.values())) + 1):
        groups = [(reach, layers[reach][i : i + size]) for reach in sorted(layers, reverse=True)
                  for i in range(0, len(layers[reach]), size)]  # fmt: skip
        cost = sum(reach for reach, _ in groups) * size * (1 + _GROUP_COST * len(groups))
        if cost < least:
            best, least = groups, cost
    return best


def _placed(groups: list[tuple[int, list[int]]], memory: PagedKv, num_layers: int, max_model_len: int) -> LayerGroups:
    places: list[tuple[int, int] | None] = [None] * num_layers
    for group, (_, ids) in enumerate(groups):
        for number, index in enumerate(ids):
            places[index] = (number, group)
    windows = tuple(_window(reach, max_model_len) for reach, _ in groups)
    return LayerGroups(windows, (memory,) * max(len(ids) for _, ids in groups), tuple(places))


def _window(reach: int, max_model_len: int) -> int | None:
    """A window that no sequence outgrows is none."""
    return reach if reach < max_model_len else None
