"""Owns the tensors of a step: turns a plan into a ragged batch, runs the model and hands out rows of logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from gpu_executor.batch import Batch, CrossBatch, Features
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.layer_groups import LayerGroups
from gpu_executor.media_batch import axes_of, features_of, whole_parts
from gpu_executor.media_cross import MediaCross
from gpu_executor.mixers.state import SlotState
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.pooler import Pooler
from gpu_executor.pooling import PoolingRunner
from gpu_executor.sampler import SampledToken, TokenLogprobs, prompt_logprobs, sample
from gpu_executor.scheduler import ScheduledSequence
from kernels.batch_invariance import batch_invariant as in_mode

_PROMPT_LOGPROB_ROWS = 64  # rows of logits held at once for prompt log-probabilities: 64 x vocabulary x 4 bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """What a step gave: a token for each part that samples (None for the others), and prompt log-probabilities.

    Where the model pools, nothing is sampled, and each part has the rows that it makes known.
    """

    sampled: list[SampledToken | None]
    prompt_logprobs: dict[int, list[TokenLogprobs]]  # by part, for positions num_computed_tokens + 1 on
    pooled: list[np.ndarray] = dataclasses.field(default_factory=list)  # (n, columns) float32 of each part


class ModelRunner:
    """Runs the model over blocks of KV that it owns. The block tables of running sequences live here, a row per slot."""

    def __init__(
        self,
        model: Decoder,
        groups: LayerGroups,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        num_snapshots: int = 0,
        pooler: Pooler | None = None,
        features: EncoderCache | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """`features` holds those of media that the step's sequences need; None for models that take text alone.

        With batch_invariant the bits of a part's results do not depend on the plan's other parts, nor on how the tokens
        before were cut into parts.
        """
        self._batch_invariant = batch_invariant
        self.model, self.block_size = model, block_size
        self.device, self.dtype = model.device, model.dtype
        self.features, self._long_from = features, model.spec.long_from
        self._pool = None if pooler is None else PoolingRunner(model, pooler)
        self.states = groups.allocate(
            num_blocks, block_size, max_num_seqs + num_snapshots, dtype=model.dtype, device=model.device
        )
        self._tables = np.zeros((len(groups.windows), max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self._encoder_tables = np.zeros((max_num_seqs, -(-model.spec.max_encoder_len // block_size)), np.int32)
        self._media_cross: MediaCross | None = None
        if model.spec.reads_media:
            assert features is not None
            self._media_cross = MediaCross(features, block_size, model.dtype, model.device)

    @torch.inference_mode()
    def run(self, plan: SequenceOf[ScheduledSequence]) -> RunResult:
        """Computes the plan's tokens and samples for the parts that have caught up; changes no sequence."""
        with in_mode(self._batch_invariant):
            return self._run(plan)

    def _run(self, plan: SequenceOf[ScheduledSequence]) -> RunResult:
        sampling = [i for i, part in enumerate(plan) if part.samples]
        wants_prompt = [i for i, part in enumerate(plan) if _wants_prompt_logprobs(part)]
        batch, last_rows = self._batch(plan, sampling)
        self._copy_states([(part.state_from, part.sequence.slot) for part in plan if part.state_from is not None])
        hidden = self.model(batch, self.states)  # (T, D)
        self._copy_states([(part.sequence.slot, part.state_to) for part in plan if part.state_to is not None])
        sampled: list[SampledToken | None] = [None] * len(plan)
        if self._pool is not None:
            return RunResult(sampled, {}, self._pool(hidden, plan))
        if sampling:
            logits = self.model.logits(hidden if len(sampling) == len(hidden) else hidden[last_rows[sampling]])
            tokens = sample(logits, [plan[i].sequence for i in sampling])
            for i, token in zip(sampling, tokens, strict=True):
                sampled[i] = token
        starts = np.concatenate(([0], last_rows.numpy() + 1)) if wants_prompt else None
        prompts = {i: self._prompt_logprobs(hidden[starts[i] : starts[i + 1]], plan[i]) for i in wants_prompt}
        return RunResult(sampled, prompts)

    def _batch(self, plan: SequenceOf[ScheduledSequence], sampling: list[int]) -> tuple[Batch, torch.Tensor]:
        """The ragged batch of a plan, and the row of each part's last token (R,)."""
        size = self.block_size
        slots = np.fromiter((part.sequence.slot for part in plan), np.int64, len(plan))
        counts = np.fromiter((part.num_tokens for part in plan), np.int32, len(plan))
        computed = np.fromiter((part.sequence.num_computed_tokens for part in plan), np.int32, len(plan))
        for part in plan:
            self._write_table(part)
        token_ids: list[int] = []
        for part in plan:
            sequence = part.sequence
            start = sequence.num_computed_tokens
            if part.num_tokens == 1:
                token_ids.append(sequence.token_ids[start])
            else:
                token_ids += sequence.token_ids[start : start + part.num_tokens]
        seq_lens = computed + counts
        query_start = np.zeros(len(plan) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        if len(token_ids) == len(plan):  # every part has one token
            positions, rows_of = computed.astype(np.int64), slots
        else:
            rows_of = np.repeat(slots, counts)
            positions = np.arange(len(token_ids)) + np.repeat(computed - query_start[:-1], counts)
        slot_mappings = tuple(self._tensor(_slots(table, rows_of, positions, size)) for table in self._tables)
        axes = axes_of(plan, positions, query_start) if self.features is not None else None
        if axes is not None and len(axes) == 1:
            positions, axes = axes[0], None
        if self._long_from is not None:
            behind = np.fromiter((self._long_from * part.sequence.is_long for part in plan), np.int64, len(plan))
            positions = positions + np.repeat(behind, counts)
        width = -(-int(seq_lens.max()) // size)
        last_rows = torch.from_numpy(query_start[1:].astype(np.int64) - 1)
        return (
            Batch(
                token_ids=self._tensor(np.array(token_ids, np.int64)),
                positions=self._tensor(positions),
                query_start=self._tensor(query_start),
                seq_lens=self._tensor(seq_lens),
                block_tables=tuple(self._tensor(table[slots, :width]) for table in self._tables),
                state_slots=self._tensor(slots),
                slot_mappings=slot_mappings,
                cross=self._cross(plan, slots, query_start),
                segments=self._segments(plan) if self.model.spec.decoder.num_segments else None,
                features=self._features_of(plan, query_start),
                axes=None if axes is None else self._tensor(axes),
                whole=whole_parts(plan) if self.model.spec.prefix_bidirectional else (),
            ),
            last_rows,
        )

    def _copy_states(self, slots: list[tuple[int, int]]) -> None:
        """Copies what layers keep in slots, (from, to) each."""
        if slots:
            sources, targets = self._tensor(np.array(slots, np.int64).T.copy())
            for state in self.states:
                if isinstance(state, SlotState):
                    state.copy(sources, targets)

    def _write_table(self, part: ScheduledSequence) -> None:
        """Copies the blocks that the sequence got since its last step into its row of each group's table."""
        sequence = part.sequence
        first, last = sequence.num_table_blocks, len(sequence.blocks[0])
        if first == 0 and self._media_cross is not None:
            self._media_cross.begin(sequence)
        elif first == 0:
            self._encoder_tables[sequence.slot, : len(sequence.encoder_blocks)] = sequence.encoder_blocks
        if first < last:
            for table, blocks in zip(self._tables, sequence.blocks, strict=True):
                table[sequence.slot, first:last] = blocks[first:]
            sequence.num_table_blocks = last

    def _features_of(self, plan: SequenceOf[ScheduledSequence], query_start: np.ndarray) -> Features | None:
        """What takes the place of the step's embeddings."""
        if self.features is None or self._media_cross is not None:
            return None
        return features_of(plan, query_start, self.features, self.device)

    def _cross(
        self, plan: SequenceOf[ScheduledSequence], slots: np.ndarray, query_start: np.ndarray
    ) -> CrossBatch | None:
        """What the parts read of what was encoded, and what is encoded in this step; None where there is nothing."""
        if self._media_cross is not None:
            return self._media_cross.batch(plan, query_start)
        return self._encoder_output(plan, slots, query_start) if self._encoder_tables.size else None

    def _encoder_output(
        self, plan: SequenceOf[ScheduledSequence], slots: np.ndarray, query_start: np.ndarray
    ) -> CrossBatch:
        """What the parts read of their encoders' outputs, and the encoders' own tokens where they run in this step."""
        size = self.block_size
        lengths = np.fromiter((len(part.sequence.request.encoder_token_ids) for part in plan), np.int32, len(plan))
        table = self._encoder_tables[slots, : -(-int(lengths.max()) // size)]
        starts = self._tensor(query_start)
        beginning = [i for i, part in enumerate(plan) if part.encodes]
        if not beginning:
            return CrossBatch(starts, self._tensor(lengths), self._tensor(table), size)
        counts = lengths[beginning]
        rows = np.repeat(np.arange(len(beginning)), counts)  # (T',)
        positions = np.concatenate([np.arange(count) for count in counts])  # (T',)
        ends = (-(-counts // size)).cumsum()  # of each encoder's blocks in the step's own cache, one after the other
        own_table = np.concatenate(([0], ends[:-1]))[:, None] + np.arange(-(-int(counts.max()) // size))
        own_table = np.minimum(own_table, ends[-1] - 1).astype(np.int32)  # past a row's end it must be readable
        encoder = Batch(
            token_ids=self._tensor(np.concatenate([plan[i].sequence.request.encoder_token_ids for i in beginning])),
            positions=self._tensor(positions),
            query_start=self._tensor(np.concatenate(([0], counts.cumsum())).astype(np.int32)),
            seq_lens=self._tensor(counts),
            block_tables=(self._tensor(own_table),),
            state_slots=self._tensor(slots[beginning]),
            slot_mappings=(self._tensor(_slots(own_table, rows, positions, size)),),
        )
        slot_mapping = self._tensor(_slots(table[beginning], rows, positions, size))
        return CrossBatch(
            starts,
            self._tensor(lengths),
            self._tensor(table),
            size,
            encoder=encoder,
            num_encoder_blocks=int(ends[-1]),
            slot_mapping=slot_mapping,
        )

    def _segments(self, plan: SequenceOf[ScheduledSequence]) -> torch.Tensor:
        """(T,): the token types that requests give, zeros for those that give none."""
        segments: list[int] = []
        for part in plan:
            given, start = part.sequence.request.pooling.token_type_ids, part.sequence.num_computed_tokens
            segments += given[start : start + part.num_tokens] if given else [0] * part.num_tokens
        return self._tensor(np.array(segments, np.int64))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device, non_blocking=True)

    def _prompt_logprobs(self, hidden: torch.Tensor, part: ScheduledSequence) -> list[TokenLogprobs]:
        """hidden (n, D) of the part's tokens -> an entry for each following prompt token that exists."""
        request, start = part.sequence.request, part.sequence.num_computed_tokens
        next_ids = request.prompt_token_ids[start + 1 : start + part.num_tokens + 1]
        entries: list[TokenLogprobs] = []
        for first in range(0, len(next_ids), _PROMPT_LOGPROB_ROWS):
            ids = next_ids[first : first + _PROMPT_LOGPROB_ROWS]
            logits = self.model.logits(hidden[first : first + len(ids)])
            entries += prompt_logprobs(logits, ids, request.sampling.prompt_logprobs or 0)
        return entries


def _slots(table: np.ndarray, rows: np.ndarray, positions: np.ndarray, block_size: int) -> np.ndarray:
    """table (R, M), rows and positions (T) -> (T) int64: where token t, at a position of the table's row, lies."""
    return table[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size


def _wants_prompt_logprobs(part: ScheduledSequence) -> bool:
    sequence = part.sequence
    return (
        sequence.request.wants_prompt_logprobs
        and sequence is sequence.request.sequences[0]
        and sequence.num_computed_tokens < sequence.request.num_prompt_tokens - 1
    )
