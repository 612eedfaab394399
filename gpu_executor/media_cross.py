"""Owns what a step's tokens read of media by cross attention, and the features that it puts into the cache for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from gpu_executor.batch import CrossBatch
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.media_layout import View
from gpu_executor.request import Sequence
from gpu_executor.scheduler import ScheduledSequence


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Tokens of a sequence that read the same."""

    view: View
    table: np.ndarray  # (M,) int32, the view's blocks in the pool
    num_tokens: int


class MediaCross:
    """Keeps the tables of running sequences, by slot: one of pool blocks for each view of their request's layout."""

    def __init__(self, features: EncoderCache, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._features, self._block_size, self._dtype, self._device = features, block_size, dtype, device
        self._tables: dict[int, list[np.ndarray]] = {}

    def begin(self, sequence: Sequence) -> None:
        """Makes the tables of a sequence that has its blocks now."""
        if sequence.request.media_layout is not None:
            blocks = np.array(sequence.encoder_blocks, np.int32)
            self._tables[sequence.slot] = [blocks[view.blocks] for view in sequence.request.media_layout.views]

    def batch(self, plan: SequenceOf[ScheduledSequence], query_start: np.ndarray) -> CrossBatch | None:
        """None where no part of the plan has media."""
        runs: list[_Run] = []
        rows: list[np.ndarray] = []
        for part, first_row in zip(plan, query_start[:-1], strict=True):
            if part.sequence.request.media_layout is not None:
                runs += self._runs(part)
                rows.append(np.arange(first_row, first_row + part.num_tokens))
        if not runs:
            return None
        counts = [run.num_tokens for run in runs]
        block_table = np.zeros((len(runs), max(len(run.table) for run in runs)), np.int32)
        for row, run in zip(block_table, runs, strict=True):
            row[: len(run.table)] = run.table
        reading, passes_mlp = np.concatenate(rows), None
        if not all(run.view.passes_mlp for run in runs):
            passing = np.repeat([float(run.view.passes_mlp) for run in runs], counts)
            passes_mlp = self._tensor(passing[:, None]).to(self._dtype)
        encoded, slots = self._encoded(plan)
        return CrossBatch(
            query_start=self._tensor(np.concatenate(([0], np.cumsum(counts))).astype(np.int32)),
            seq_lens=self._tensor(np.array([run.view.num_rows for run in runs], np.int32)),
            block_table=self._tensor(block_table),
            block_size=self._block_size,
            rows=None if len(reading) == query_start[-1] else self._tensor(reading),
            passes_mlp=passes_mlp,
            encoded=encoded,
            slot_mapping=slots,
        )

    def _runs(self, part: ScheduledSequence) -> list[_Run]:
        """The part's tokens in runs that read the same, in order; a token that is generated reads the last view."""
        sequence = part.sequence
        views, tables = sequence.request.media_layout.views, self._tables[sequence.slot]
        start = sequence.num_computed_tokens
        end, runs = start + part.num_tokens, []
        for view, table in zip(reversed(views), reversed(tables), strict=True):
            if end > max(view.start, start):
                runs.append(_Run(view, table, end - max(view.start, start)))
                end = max(view.start, start)
        return runs[::-1]

    def _encoded(self, plan: SequenceOf[ScheduledSequence]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Features (T', D) that go into the cache in this step, and their slots (T',)."""
        encoded: list[torch.Tensor] = []
        slots: list[np.ndarray] = []
        for part in plan:
            request, layout = part.sequence.request, part.sequence.request.media_layout
            if layout is None or not part.encodes:
                continue
            joined = torch.cat([self._features[item.digest] for item in request.media])
            encoded.append(joined[self._tensor(layout.rows)])
            blocks, size = np.array(part.sequence.encoder_blocks, np.int64), self._block_size
            slots.append(blocks[layout.slots // size] * size + layout.slots % size)
        return (torch.cat(encoded), self._tensor(np.concatenate(slots))) if encoded else (None, None)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)
