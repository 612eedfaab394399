"""Owns the step: schedule, build the batch, run, sample, hand out. It never sees text, and it runs in one thread.

add / abort ──▶ scheduler ──▶ plan ──▶ model_runner ──▶ tokens ──▶ StepOutput
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as SequenceOf

import numpy as np

from forebay.errors import Aborted, DeadlineExceeded, ForebayError, InvalidRequest, NotOffered, ResourceExhausted
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.media import check_cross_media, check_media, check_positions
from gpu_executor.media_encoder import MediaEncoder
from gpu_executor.media_layout import MediaLayout, lay_out
from gpu_executor.model_runner import ModelRunner, RunResult
from gpu_executor.models.pooler import Pooler
from gpu_executor.models.spec import ModelSpec
from gpu_executor.pooling import check_pooling
from gpu_executor.request import FinishReason, Request, Sequence
from gpu_executor.sampler import TokenLogprobs
from gpu_executor.scheduler import ScheduledSequence, Scheduler


@dataclasses.dataclass(frozen=True, slots=True)
class TokenOutput:
    """A token that a step gave a sequence. A snapshot: the sequence itself goes on while this is being sent."""

    sequence: Sequence
    token_id: int
    token_index: int  # among the sequence's generated tokens, from 0
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None  # if the sequence ended with this token
    ends_request: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PromptLogprobsOutput:
    """Log-probabilities of prompt tokens; the first entry is that of the token at `first_position`."""

    request: Request
    first_position: int
    entries: list[TokenLogprobs]


@dataclasses.dataclass(frozen=True, slots=True)
class PooledOutput:
    """Rows of a pooling request's result that became known, of which there may be none with the last part."""

    request: Request
    first_row: int
    rows: np.ndarray  # (n, columns) float32
    finished: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is."""

    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_used_blocks: int
    num_blocks: int
    num_preemptions: int


@dataclasses.dataclass(slots=True)
class StepOutput:
    """What one step gave."""

    step: int
    load: Load | None = None
    stored_hashes: list[int] = dataclasses.field(default_factory=list)  # new in the prefix cache
    removed_hashes: list[int] = dataclasses.field(default_factory=list)
    tokens: list[TokenOutput] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[PromptLogprobsOutput] = dataclasses.field(default_factory=list)
    pooled: list[PooledOutput] = dataclasses.field(default_factory=list)
    started: list[Request] = dataclasses.field(default_factory=list)  # first token; num_cached_tokens is known
    failed: list[tuple[Request, ForebayError]] = dataclasses.field(default_factory=list)


class Engine:
    """Continuous batching over one model. Not thread-safe: whoever owns it calls everything from one thread."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        *,
        max_model_len: int,
        vocab_size: int,
        max_num_waiting: int,
        max_encoder_len: int = 0,
        first_token_id: int | None = None,
        pooler: Pooler | None = None,
        spec: ModelSpec | None = None,
        modalities: tuple[str, ...] = (),
        encode: MediaEncoder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_encoder_len` is 0 for models without an encoder; `first_token_id` follows a decoder prompt of one token.

        With a `pooler`, all requests pool; without one, all generate. `spec`, `modalities` and `encode` are
        for media in prompts.
        """
        self.runner, self.scheduler = runner, scheduler
        self.max_model_len, self.vocab_size, self.max_num_waiting = max_model_len, vocab_size, max_num_waiting
        self.max_encoder_len, self.first_token_id = max_encoder_len, first_token_id
        self.pooler = pooler
        self.spec, self.modalities, self._encode = spec, modalities, encode
        self.num_steps = 0
        self.requests: dict[Hashable, Request] = {}
        self._clock = clock
        self._deadlines: list[tuple[float, int, Request]] = []
        self._ties = itertools.count()

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, request: Request) -> None:
        """Takes a request, or raises what is wrong with it; nothing of it is kept then."""
        request.long_from = None if self.spec is None else self.spec.long_from
        request.prompt_is_whole = self.spec is not None and self.spec.prefix_bidirectional and bool(request.media)
        self.check(request)
        if not request.sequences:  # resumed, and all of it had ended
            return
        self.requests[request.key] = request
        request.pools_every_token = self.pooler is not None and self.pooler.needs_every_token
        request.first_token_id = self.first_token_id if request.num_prompt_tokens == 1 else None
        if request.deadline is not None:
            self._watch_deadline(request)
        self.scheduler.add(request)

    def check(self, request: Request) -> None:
        """Raises what is wrong with a request. The frontend has looked too, but a wrong id would be a device fault for all."""
        prompt, sampling = request.prompt_token_ids, request.sampling
        if request.key in self.requests:
            raise InvalidRequest("this request number is in use", ErrorReason.ERROR_REASON_DUPLICATE_REQUEST)
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        self._check_task(request)
        self._check_encoder_input(request)
        self._check_media(request)
        for sequence in request.sequences:
            self._check_ids(sequence.token_ids)
            if request.pooling is None and sequence.num_output_tokens >= sampling.max_tokens:
                raise InvalidRequest("a resumed sequence has max_tokens tokens already")
        total = len(prompt) + sampling.max_tokens
        if total > self.max_model_len:
            if request.pooling is not None:
                raise InvalidRequest(
                    f"the prompt has {total:,} tokens; the model takes {self.max_model_len:,}",
                    ErrorReason.ERROR_REASON_TOO_LONG,
                )
            raise InvalidRequest(
                f"prompt ({len(prompt):,} tokens) and max_tokens ({sampling.max_tokens:,}) are {total:,} together; "
                f"the model takes {self.max_model_len:,}",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )
        size = self.scheduler.block_size
        num_encoder_blocks = request.num_encoder_blocks(size)
        needed = self.scheduler.most_blocks(total, num_encoder_blocks)
        num_blocks = self.scheduler.pool.num_blocks
        if needed > num_blocks:
            beside = f" beside {len(request.encoder_token_ids):,} of the encoder" if request.encoder_token_ids else ""
            limit = f"; the KV cache holds {num_blocks * size:,}"
            reach = self.scheduler.reach
            if reach.slides or reach.num_groups > 1 or request.media_layout is not None:
                limit = f", which take up to {needed:,} blocks of KV at once; the cache has {num_blocks:,}"
            raise InvalidRequest(
                f"prompt and max_tokens are {total:,} tokens{beside}{limit}",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )
        if len(self.scheduler.waiting) + len(request.sequences) > self.max_num_waiting:
            raise ResourceExhausted(
                f"{len(self.scheduler.waiting):,} sequences wait; at most {self.max_num_waiting:,} can",
                retry_after_ms=1000,
            )

    def _check_ids(self, token_ids: SequenceOf[int]) -> None:
        worst = max(token_ids)
        if worst >= self.vocab_size or min(token_ids) < 0:
            raise InvalidRequest(
                f"token id {worst} is not below the vocabulary's {self.vocab_size:,} entries",
                ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE,
            )

    def _check_task(self, request: Request) -> None:
        if self.pooler is None:
            if request.pooling is not None:
                raise NotOffered(f"this model serves generate, not {request.pooling.task}")
            return
        if request.pooling is None:
            raise NotOffered(f"this model serves {' and '.join(self.pooler.tasks)}, not generate")
        check_pooling(request, self.pooler)
        most = self.scheduler.max_num_batched_tokens
        if self.pooler.bidirectional and request.num_prompt_tokens > most:
            raise InvalidRequest(
                f"the prompt has {request.num_prompt_tokens:,} tokens, which this model reads in one step; a step takes "
                f"{most:,} (--max-num-batched-tokens)",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )

    def _check_encoder_input(self, request: Request) -> None:
        num_tokens = len(request.encoder_token_ids)
        if not self.max_encoder_len:
            if num_tokens:
                raise InvalidRequest("this model has no encoder; it takes no encoder tokens")
            return
        if not num_tokens:
            raise InvalidRequest("the encoder's input has no tokens", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        if num_tokens > self.max_encoder_len:
            raise InvalidRequest(
                f"the encoder's input has {num_tokens:,} tokens; the model takes {self.max_encoder_len:,}",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )
        self._check_ids(request.encoder_token_ids)

    def _check_media(self, request: Request) -> None:
        reach, spec = self.scheduler.media, self.spec
        check_media(
            request.media,
            request.num_prompt_tokens,
            modalities=self.modalities,
            hidden_size=0 if spec is None else spec.decoder.embed_size or spec.decoder.hidden_size,
            max_features=0 if reach is None else reach.cache.max_rows,
        )
        request.media_layout = self._media_layout(request)
        if request.positions is not None:
            max_tokens = request.sampling.max_tokens
            check_positions(request.positions, request.num_prompt_tokens, max_tokens, self.max_model_len)
        if request.prompt_is_whole and request.num_prompt_tokens > self.scheduler.max_num_batched_tokens:
            raise InvalidRequest(
                f"the prompt has {request.num_prompt_tokens:,} tokens, which this model reads in one step with its media; a "
                f"step takes {self.scheduler.max_num_batched_tokens:,} (--max-num-batched-tokens)",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )

    def _media_layout(self, request: Request) -> MediaLayout | None:
        """Where the request's media lies for cross attention; None for models, and for prompts, that have none."""
        if not request.media or self.spec is None or not self.spec.reads_media:
            return None
        tower = self.spec.tower
        check_cross_media(request.media, tower, self.scheduler.media.cache.max_rows)
        return lay_out(
            [item.start for item in request.media],
            [tower.num_tiles(item.tensors) for item in request.media],
            max_tiles=tower.max_tiles,
            tile_rows=tower.tile_rows,
            block_size=self.scheduler.block_size,
        )

    def abort(self, key: Hashable, sequence_index: int | None = None) -> bool:
        """Ends a request (or one of its sequences) at once; whether it was running."""
        request = self.requests.get(key)
        if request is None:
            return False
        ended = self.scheduler.abort(request, sequence_index)
        self._forget_if_finished(request)
        return ended

    def step(self) -> StepOutput:
        """Runs one step. With nothing to compute, only deadlines are looked at."""
        output = StepOutput(self.num_steps)
        self._expire(output)
        plan = self.scheduler.schedule()
        if plan:
            self._run(plan, output)
        output.load = self.load()
        if self.scheduler.pool.prefix_cache is not None:
            output.stored_hashes, output.removed_hashes = self.scheduler.pool.prefix_cache.take_events()
        return output

    def load(self) -> Load:
        """How busy the engine is now; called by whoever steps it."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return Load(
            len(scheduler.running), len(scheduler.waiting), scheduler.num_waiting_tokens, pool.num_used, pool.num_blocks,
            scheduler.ledger.num_preemptions,
        )  # fmt: skip

    def _run(self, plan: list[ScheduledSequence], output: StepOutput) -> None:
        self.num_steps += 1
        output.step = self.num_steps
        if self.scheduler.media is not None:
            plan = self._encode_media(plan, output)
            if not plan:
                return
        result = self.runner.run(plan)
        self._collect_prompt_logprobs(plan, result, output)
        self.scheduler.update(plan)
        for part, rows in zip(plan, result.pooled, strict=bool(result.pooled)):
            self._collect_pooled(part, rows, output)
        for part, sampled in zip(plan, result.sampled, strict=True):
            sequence = part.sequence
            if sampled is None or sequence.finish_reason is not None:
                continue
            if sampled.token_id is None:
                self._fail(sequence.request, Aborted("the model gave values that are not numbers"), output)
                continue
            token_index = sequence.num_output_tokens
            sequence.append(sampled.token_id)
            if token_index == 0 and sequence is sequence.request.sequences[0]:
                output.started.append(sequence.request)
            if sequence.finish_reason is not None:
                self.scheduler.finish(sequence)
                self._forget_if_finished(sequence.request)
            elif sequence.num_tokens - 1 == sequence.request.long_from:
                self.scheduler.recompute(sequence)  # with this token it became long, and so do its keys
            output.tokens.append(
                TokenOutput(
                    sequence,
                    sampled.token_id,
                    token_index,
                    sampled.logprobs,
                    sequence.finish_reason,
                    sequence.finish_reason is not None and sequence.request.finished,
                )
            )

    def _encode_media(self, plan: list[ScheduledSequence], output: StepOutput) -> list[ScheduledSequence]:
        """Computes the features that the plan needs; what is left of the plan when requests fail for their media."""
        items = self.scheduler.media.to_compute(part.sequence for part in plan)
        errors = self._encode(items) if items else {}
        for sequence in [part.sequence for part in plan] if errors else ():
            held = [sequence.request.media[index].digest for index in sequence.held_media]
            error = next((errors[digest] for digest in held if digest in errors), None)
            if error is not None:
                self._fail(sequence.request, error, output)
        return [part for part in plan if part.sequence.finish_reason is None]

    def _collect_pooled(self, part: ScheduledSequence, rows: np.ndarray, output: StepOutput) -> None:
        """Hands out the rows of a part that is computed, and ends the request with its last part."""
        sequence, request = part.sequence, part.sequence.request
        finished = sequence.num_computed_tokens == sequence.num_tokens
        if not np.isfinite(rows).all():
            self._fail(request, Aborted("the model gave values that are not numbers"), output)
            return
        if sequence.num_computed_tokens == part.num_tokens:  # the first part, be it once more after a preemption
            request.num_known_rows = 0
        first = request.num_known_rows
        request.num_known_rows += len(rows)
        known = min(len(rows), max(0, request.num_pooled_rows - first))
        request.num_pooled_rows = max(request.num_pooled_rows, request.num_known_rows)
        if finished:
            sequence.finish_reason = FinishReason.STOP
            self.scheduler.finish(sequence)
            self._forget_if_finished(request)
            output.started.append(request)
        if finished or len(rows) > known:
            output.pooled.append(PooledOutput(request, first + known, rows[known:], finished))

    def _collect_prompt_logprobs(self, plan: list[ScheduledSequence], result: RunResult, output: StepOutput) -> None:
        for index, entries in result.prompt_logprobs.items():
            sequence = plan[index].sequence
            request, first = sequence.request, sequence.num_computed_tokens + 1
            # After a preemption the prompt is computed again; what was reported is not reported twice.
            known = max(0, request.num_prompt_logprobs + 1 - first)
            if entries[known:]:
                output.prompt_logprobs.append(PromptLogprobsOutput(request, first + known, entries[known:]))
                request.num_prompt_logprobs = first + len(entries) - 1

    def _watch_deadline(self, request: Request) -> None:
        """Puts the request into the heap of deadlines; requests that ended long before theirs are forgotten there."""
        if len(self._deadlines) > 2 * len(self.requests) + 64:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].finished]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (request.deadline, next(self._ties), request))

    def _expire(self, output: StepOutput) -> None:
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.finished and self.requests.get(request.key) is request:
                num_output = max(sequence.num_output_tokens for sequence in request.sequences)
                self._fail(request, DeadlineExceeded(f"the deadline passed after {num_output} tokens"), output)

    def _fail(self, request: Request, error: ForebayError, output: StepOutput) -> None:
        self.scheduler.abort(request)
        self._forget_if_finished(request)
        output.failed.append((request, error))

    def _forget_if_finished(self, request: Request) -> None:
        if request.finished:
            self.requests.pop(request.key, None)
