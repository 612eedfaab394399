"""Runs a decoder without an engine: sequences in shuffled blocks of a cache full of NaN, any tokens in any batch."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

import torch

from gpu_executor.batch import Batch
from gpu_executor.models.decoder import Decoder

_NUM_SLOTS = 8


class PagedSequences:
    """Sequences by key, each with its own blocks and the number of its tokens that are in the cache."""

    def __init__(
        self, model: Decoder, *, num_blocks: int = 64, block_size: int = 4, seed: int = 0, long: Collection[str] = ()
    ) -> None:
        """`long`: the sequences that are to be longer than the model's trained length."""
        self._first_position = dict.fromkeys(long, model.spec.long_from or 0)
        self._model, self._block_size = model, block_size
        self._states = [
            layout and layout.allocate(num_blocks, block_size, _NUM_SLOTS, dtype=model.dtype, device=model.device)
            for layout in model.state_layouts
        ]
        for tensor in (tensor for state in self._states if state is not None for tensor in state.tensors):
            tensor.fill_(torch.nan)
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)
        self._blocks: dict[str, list[int]] = {}
        self._num_computed: dict[str, int] = {}
        self._slots: dict[str, int] = {}

    @torch.inference_mode()
    def step(self, parts: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """Next token ids of some sequences, in one batch -> logits (n, V) of each."""
        size = self._block_size
        token_ids, positions, slots, starts, lengths = [], [], [], [0], []
        for key, ids in parts.items():
            first = self._num_computed.get(key, 0)
            blocks = self._blocks.setdefault(key, [])
            while len(blocks) * size < first + len(ids):
                blocks.append(self._free.pop())
            for position, token_id in enumerate(ids, first):
                token_ids.append(token_id)
                positions.append(self._first_position.get(key, 0) + position)
                slots.append(blocks[position // size] * size + position % size)
            starts.append(len(token_ids))
            lengths.append(first + len(ids))
            self._num_computed[key] = first + len(ids)
        width = max(len(self._blocks[key]) for key in parts)
        state_slots = [self._slots.setdefault(key, _NUM_SLOTS - 1 - len(self._slots)) for key in parts]
        table = [self._blocks[key] + [0] * (width - len(self._blocks[key])) for key in parts]
        batch = Batch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            query_start=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_tables=(torch.tensor(table, dtype=torch.int32),),
            state_slots=torch.tensor(state_slots),
            slot_mappings=(torch.tensor(slots),),
        )
        logits = self._model.logits(self._model(batch, self._states))
        return dict(zip(parts, logits.split([len(ids) for ids in parts.values()]), strict=True))


def run_in_chunks(model: Decoder, token_ids: Sequence[int], size: int) -> torch.Tensor:
    """Logits (n, V) of a prompt that is fed `size` tokens at a time."""
    long_from = model.spec.long_from
    sequences = PagedSequences(model, long="a" if long_from is not None and len(token_ids) > long_from else ())
    chunks = [sequences.step({"a": token_ids[i : i + size]})["a"] for i in range(0, len(token_ids), size)]
    return torch.cat(chunks)
