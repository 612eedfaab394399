"""Runs one multimodal prompt without an engine: the tower, the prompt in chunks, then greedy tokens one by one."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.batch import Batch, Features
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.towers.tower import TowerInput
from preprocess.media_item import EMBEDDINGS, EncodedPrompt, MediaItem

_BLOCK_SIZE = 16


@dataclasses.dataclass
class MediaRun:
    """One sequence in a cache of its own."""

    model: Decoder
    prompt: EncodedPrompt

    def __post_init__(self) -> None:
        self._num_computed = 0
        count = len(self.prompt.token_ids) + 64
        self._states = [
            layout
            and layout.allocate(
                count // _BLOCK_SIZE + 1, _BLOCK_SIZE, 1, dtype=self.model.dtype, device=self.model.device
            )
            for layout in self.model.state_layouts
        ]
        self._rows = {}
        for placed in self.prompt.media:
            rows = (row for start, length in placed.spans for row in range(start, start + length))
            self._rows |= dict(zip(rows, features_of(self.model, placed.item), strict=True))

    def greedy(self, max_tokens: int, chunk: int = 1 << 20) -> tuple[list[int], list[torch.Tensor]]:
        """Token ids, and log-probabilities (V) of each."""
        ids, positions = self.prompt.token_ids, self.prompt.positions
        places = list(range(len(ids))) if positions is None else positions[0].tolist()
        following = max(places) + 1
        for first in range(0, len(ids), chunk):
            logits = self._step(ids[first : first + chunk], places[first : first + chunk])
        found, logprobs = [], []
        for number in range(max_tokens):
            logprobs.append(logits.log_softmax(-1))
            found.append(int(logits.argmax()))
            logits = self._step([found[-1]], [following + number])
        return found, logprobs

    @torch.inference_mode()
    def hidden(self) -> torch.Tensor:
        """The prompt's hidden states (T, D)."""
        places = list(range(len(self.prompt.token_ids)))
        return self.model(self._batch(self.prompt.token_ids, places), self._states)

    @torch.inference_mode()
    def _step(self, token_ids: list[int], places: list[int]) -> torch.Tensor:
        """Logits (V) of the last token."""
        return self.model.logits(self.model(self._batch(token_ids, places), self._states)[-1:])[0]

    def _batch(self, token_ids: list[int], places: list[int]) -> Batch:
        first, count = self._num_computed, len(token_ids)
        self._num_computed += count
        rows = [row for row in range(count) if first + row in self._rows]
        features = (
            Features(torch.tensor(rows), torch.stack([self._rows[first + row] for row in rows])) if rows else None
        )
        return Batch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(places),
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([first + count], dtype=torch.int32),
            block_table=torch.arange((first + count) // _BLOCK_SIZE + 1, dtype=torch.int32)[None],
            state_slots=torch.tensor([0]),
            slot_mapping=torch.arange(first, first + count),
            features=features,
        )


def features_of(model: Decoder, item: MediaItem) -> torch.Tensor:
    """What the tower makes of an item, or what the client made: (n, D)."""
    tensors = {name: torch.tensor(tensor) for name, tensor in item.tensors.items()}
    if EMBEDDINGS in tensors:
        return tensors[EMBEDDINGS]
    (features,) = model.encode_media([TowerInput(item.modality, tensors)])
    assert len(features) == item.num_features
    return features
