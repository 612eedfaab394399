"""Owns the results of requests that pool: from a step's hidden states to the rows that become known with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from forebay.errors import InvalidRequest, NotOffered
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.pooler import Activation, Pooler
from gpu_executor.request import Request
from gpu_executor.scheduler import ScheduledSequence
from kernels import batch_invariance
from kernels.batch_invariance import rowwise

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: rowwise(lambda rows: rows.softmax(-1), x),
    "sigmoid": lambda x: rowwise(torch.sigmoid, x),
    "identity": lambda x: x,
}
_LOGIT_ROWS = 64  # rows of logits held at once, vocabulary x 4 bytes each


def check_pooling(request: Request, pooler: Pooler) -> None:
    """Raises what is wrong with a pooling request."""
    params, num_tokens = request.pooling, request.num_prompt_tokens
    assert params is not None
    if params.task not in pooler.tasks:
        raise NotOffered(f"this model serves {' and '.join(pooler.tasks)}, not {params.task}")
    if params.token_type_ids:
        if not pooler.num_segments:
            raise InvalidRequest("this model has no token types")
        if len(params.token_type_ids) != num_tokens:
            raise InvalidRequest(f"there are {len(params.token_type_ids):,} token types for {num_tokens:,} tokens")
        if not 0 <= min(params.token_type_ids) <= max(params.token_type_ids) < pooler.num_segments:
            raise InvalidRequest(f"a token type is not below {pooler.num_segments}, how many the model has")
    if params.dimensions is not None and not 1 <= params.dimensions <= pooler.num_columns:
        raise InvalidRequest(f"dimensions is {params.dimensions}; it must be in [1, {pooler.num_columns:,}]")
    if params.dimensions is not None and params.task != "embed":
        raise InvalidRequest("dimensions can be asked for embeddings only")
    if params.num_instruction_tokens and params.num_instruction_tokens >= num_tokens:
        raise InvalidRequest(
            f"the instruction has {params.num_instruction_tokens:,} tokens, and the whole prompt {num_tokens:,}"
        )


class PoolingRunner:
    """Pools the hidden states of each step. What a mean has summed up so far lies in the requests."""

    def __init__(self, model: Decoder, pooler: Pooler) -> None:
        self.pooler = pooler
        self._model = model
        self._has_head = bool(pooler.returned_token_ids) or (model.classify is not None and "embed" not in pooler.tasks)
        self._columns = torch.tensor(pooler.returned_token_ids, device=model.device)

    def __call__(self, hidden: torch.Tensor, plan: SequenceOf[ScheduledSequence]) -> list[np.ndarray]:
        """hidden (T, D) of the plan's parts -> for each part the rows (n, columns) float32 that it makes known."""
        chosen: list[torch.Tensor] = []
        start = 0
        for part in plan:
            chosen.append(self._choose(hidden[start : start + part.num_tokens], part))
            start += part.num_tokens
        counts = [len(rows) for rows in chosen]
        values = self._head(torch.cat(chosen)).cpu() if any(counts) else torch.empty(0, self.pooler.num_columns)
        parts = zip(plan, values.split(counts), strict=True)
        return [self._finish(rows, part.sequence.request).numpy() for part, rows in parts]

    def _choose(self, hidden: torch.Tensor, part: ScheduledSequence) -> torch.Tensor:
        """hidden (n, D) of a part -> the rows (m, D) that count and are known."""
        sequence = part.sequence
        first = sequence.num_computed_tokens
        match self.pooler.kind:
            case "last":
                return hidden[-1:] if part.samples else hidden[:0]
            case "cls":
                return hidden[:1] if first == 0 else hidden[:0]
            case "all":
                return hidden
            case "step":
                token_ids = sequence.token_ids[first : first + part.num_tokens]
                tags = [row for row, token_id in enumerate(token_ids) if token_id == self.pooler.step_tag_id]
                return hidden[tags]
            case "mean":
                return self._mean(hidden, part)

    def _mean(self, hidden: torch.Tensor, part: ScheduledSequence) -> torch.Tensor:
        """hidden (n, D) -> (1, D) with a prompt's last part, (0, D) before; sums are float32."""
        request, first = part.sequence.request, part.sequence.num_computed_tokens
        skipped = self._num_skipped(request)
        counted = hidden[max(0, skipped - first) :]  # (n, D)
        before = torch.zeros(hidden.shape[1], device=hidden.device) if first == 0 else request.pooled_sum  # (D)
        if batch_invariance.is_on():  # in one order, however the prompt was cut
            request.pooled_sum = functools.reduce(torch.add, counted.float(), before)
        else:
            request.pooled_sum = before + counted.sum(0, dtype=torch.float32)
        if not part.samples:
            return hidden[:0]
        mean = request.pooled_sum / (request.num_prompt_tokens - skipped)
        return mean[None].to(hidden.dtype if self._has_head else torch.float32)

    def _num_skipped(self, request: Request) -> int:
        """Tokens at the prompt's beginning that a mean leaves out; at least one token is left."""
        ends, token_ids = self.pooler.instruction_ends, request.prompt_token_ids
        skipped = request.pooling.num_instruction_tokens
        if ends is not None and not skipped:
            skipped = _end_of_instruction(token_ids, ends)
        return skipped if skipped < len(token_ids) else 0

    def _head(self, rows: torch.Tensor) -> torch.Tensor:
        """rows (m, D) -> (m, columns) float32."""
        if self.pooler.returned_token_ids:
            parts = [self._model.logits(part)[:, self._columns] for part in rows.split(_LOGIT_ROWS)]
            return torch.cat(parts)
        return self._model.classify(rows) if self._has_head else rows.float()

    def _finish(self, rows: torch.Tensor, request: Request) -> torch.Tensor:
        """rows (m, columns) -> what the request gets of them."""
        params, pooler = request.pooling, self.pooler
        if params.task == "embed":
            if params.dimensions is not None:
                rows = rows[:, : params.dimensions]
            normalize = pooler.normalize if params.normalize is None else params.normalize
            return rowwise(lambda row: torch.nn.functional.normalize(row, dim=-1), rows) if normalize else rows
        activates = pooler.activates if params.activation is None else params.activation
        return _ACTIVATIONS[pooler.activation](rows) if activates else rows


def _end_of_instruction(token_ids: list[int], ends: SequenceOf[tuple[int, ...]]) -> int:
    """How many tokens the instruction has: up to the end of the first of these sequences, else the first token alone."""
    for start in range(len(token_ids)):
        for end in ends:
            if tuple(token_ids[start : start + len(end)]) == end:
                return start + len(end)
    return 1
