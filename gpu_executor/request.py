"""Owns a request's state: what to generate from, how, and how far each of its sequences has come."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np

from forebay.block_hash import MediaMap, block_digest, root_digest
from gpu_executor.media import MediaInput
from gpu_executor.media_layout import MediaLayout


class FinishReason(enum.Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; see SamplingParams of executor.proto for ranges. Values are validated before they get here."""

    max_tokens: int
    min_tokens: int = 0
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # with the model's own, unless ignore_eos
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def changes_logits(self) -> bool:
        """Whether anything touches the logits before temperature and filters."""
        return bool(
            self.has_penalties or self.logit_bias or self.bad_words or self.allowed_token_ids or self.min_tokens
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PoolingParams:
    """What to make of a prompt instead of continuing it; see PoolingParams of executor.proto."""

    task: str
    token_type_ids: tuple[int, ...] = ()
    dimensions: int | None = None
    normalize: bool | None = None
    activation: bool | None = None
    num_instruction_tokens: int = 0


_NO_SAMPLING = Sampling(max_tokens=0)


class Request:
    """A prompt and the n sequences that continue it. `key` is unique in the engine; `owner` is whoever takes the outputs.

    For an encoder-decoder the prompt is the decoder's, and `encoder_token_ids` what the encoder reads.
    """

    __slots__ = (
        "_prompt_token_set",
        "arrival",
        "deadline",
        "encoder_token_ids",
        "epoch",
        "first_token_id",
        "key",
        "long_from",
        "media",
        "media_layout",
        "media_map",
        "num_cached_tokens",
        "num_known_rows",
        "num_pooled_rows",
        "num_prompt_logprobs",
        "owner",
        "pooled_sum",
        "pooling",
        "pools_every_token",
        "position_delta",
        "positions",
        "priority",
        "prompt_is_whole",
        "prompt_token_ids",
        "salt",
        "sampling",
        "sequences",
    )  # fmt: skip

    def __init__(
        self,
        key: object,
        prompt_token_ids: list[int],
        sampling: Sampling | None = None,
        *,
        pooling: PoolingParams | None = None,
        owner: object = None,
        epoch: int = 0,
        priority: int = 0,
        deadline: float | None = None,
        salt: bytes = b"",
        encoder_token_ids: list[int] | None = None,
        media: SequenceOf[MediaInput] = (),
        positions: np.ndarray | None = None,
        resumed: dict[int, tuple[list[int], bool]] | None = None,
    ) -> None:
        """One of `sampling` and `pooling` is given, `deadline` is on the monotonic clock, and `resumed` maps a sequence index
        to (its tokens, whether it has ended). `positions` (axes, prompt tokens) int64 is given where rotary positions are not
        indexes; what follows the prompt goes on behind the largest."""
        assert (sampling is None) != (pooling is None)
        sampling = sampling or _NO_SAMPLING
        self.pooling = pooling
        self.pools_every_token = False  # set by the engine
        self.pooled_sum: Any = None  # of hidden states, while a mean is being made
        self.num_pooled_rows = 0  # that were reported
        self.num_known_rows = 0  # of the tokens computed so far, after a preemption from the beginning again
        self.key, self.owner, self.epoch = key, owner, epoch
        self.prompt_token_ids, self.sampling = prompt_token_ids, sampling
        self.priority, self.deadline, self.salt = priority, deadline, salt
        self.encoder_token_ids = encoder_token_ids or []
        self.media, self.positions = tuple(media), positions
        # What is added to the index of a token behind the prompt for its rotary position.
        self.position_delta = 0 if positions is None else int(positions.max()) + 1 - len(prompt_token_ids)
        self.media_map = MediaMap((start, length, item.digest) for item in self.media for start, length in item.spans)
        self.media_layout: MediaLayout | None = None  # of media that cross attention reads; set by the engine
        self.long_from: int | None = None  # tokens beyond which a sequence rotates in another way; set by the engine
        self.prompt_is_whole = False  # its tokens see each other, whichever comes first; set by the engine
        self.arrival = -1  # set by the scheduler
        self.first_token_id: int | None = (
            None  # what each sequence begins with, whatever the model says; set by the engine
        )
        self.num_cached_tokens = 0  # of the prompt, that the prefix cache held
        self.num_prompt_logprobs = 0  # prompt tokens, from the second on, whose log-probabilities were reported
        self._prompt_token_set: frozenset[int] | None = None
        resumed = resumed or {}
        self.sequences = [
            Sequence(self, index, resumed.get(index, ((), False))[0])
            for index in range(sampling.n)
            if not resumed.get(index, ((), False))[1]
        ]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def root_digest(self) -> bytes:
        """The parent digest of the first block, over what the first token's state depends on of what follows it.

        This is all of a prompt that is whole, and all media where tokens read of media behind them.
        """
        root = root_digest(self.salt, self.encoder_token_ids)
        if self.media_layout is not None and self.media_layout.reads_all:
            return block_digest(root, (), self.media_map.key(0, self.num_prompt_tokens))
        if not self.prompt_is_whole:
            return root
        return block_digest(root, self.prompt_token_ids, self.media_map.key(0, self.num_prompt_tokens))

    @property
    def is_encoded(self) -> bool:
        """Whether some sequence holds what cross attention reads of the request's encoder or media."""
        return any(sequence.is_encoded for sequence in self.sequences)

    def num_encoder_blocks(self, block_size: int) -> int:
        """Blocks of what cross attention reads beside the sequence itself; 0 where there is no such thing."""
        if self.media_layout is not None:
            return self.media_layout.num_blocks
        return -(-len(self.encoder_token_ids) // block_size)

    @property
    def finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities were asked for and are not all reported yet."""
        return self.sampling.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    @property
    def computes_whole_prompt(self) -> bool:
        """Whether something is asked of each of the prompt's tokens, so that none may be taken as computed."""
        return self.pools_every_token or self.wants_prompt_logprobs

    @property
    def prompt_token_set(self) -> frozenset[int]:
        """The prompt's distinct tokens, for the repetition penalty; made once."""
        if self._prompt_token_set is None:
            self._prompt_token_set = frozenset(self.prompt_token_ids)
        return self._prompt_token_set


class Sequence:
    """One continuation of a request's prompt.

    It has `num_computed_tokens` of its tokens' KV in `blocks` and must catch up with `token_ids` (prompt and output):
    there is no prefill and no decode phase. When it has caught up, a new token is sampled.
    """

    __slots__ = (
        "blocks",
        "digests",
        "encoder_blocks",
        "finish_reason",
        "held_media",
        "index",
        "is_encoded",
        "num_computed_tokens",
        "num_passed_blocks",
        "num_preemptions",
        "num_published",
        "num_table_blocks",
        "output_counts",
        "passing_snapshot",
        "request",
        "slot",
        "stops",
        "token_ids",
    )  # fmt: skip

    def __init__(self, request: Request, index: int, output_token_ids: list[int] | tuple[int, ...] = ()) -> None:
        self.request, self.index = request, index
        self.token_ids = [*request.prompt_token_ids, *output_token_ids]
        self.num_computed_tokens = 0
        # Of each group of layers, by position; the first num_passed_blocks of a group are no longer its own. Empty until it runs.
        self.blocks: list[list[int]] = []
        self.num_passed_blocks: list[int] = []  # that no query reads any more, given back
        self.encoder_blocks: list[int] = []  # what cross attention reads of the encoder's output
        self.is_encoded = False  # whether they hold it
        self.held_media: set[int] = set()  # indexes of the request's media whose features are held for it
        self.digests: list[bytes] = []  # of full blocks, as far as they were needed
        self.num_published = 0  # leading blocks of each group that the prefix cache knows
        self.slot = -1  # row of the runner's block table while running
        self.num_table_blocks = 0  # leading blocks of each group that the runner's tables hold
        self.finish_reason: FinishReason | None = None
        self.output_counts: Counter[int] | None = Counter(output_token_ids) if request.sampling.has_penalties else None
        self.num_preemptions = 0
        self.stops: tuple[int, ...] = ()  # tokens after which its state is worth a snapshot: chunks end there
        self.passing_snapshot: bytes | None = None  # digest of the last one that was made elsewhere

    @property
    def held_blocks(self) -> list[int]:
        held = [block for blocks, n in zip(self.blocks, self.num_passed_blocks, strict=True) for block in blocks[n:]]
        return held + self.encoder_blocks

    @property
    def is_long(self) -> bool:
        """Whether it rotates as sequences beyond the trained length do (LongRoPE)."""
        return self.request.long_from is not None and len(self.token_ids) > self.request.long_from

    @property
    def root_digest(self) -> bytes:
        """The parent digest of its first block; what rotates in another way has other keys."""
        root = self.request.root_digest
        return block_digest(root, (), b"long") if self.is_long else root

    @property
    def changes_logits(self) -> bool:
        """Whether anything touches the next token's logits before temperature and filters."""
        return self.request.sampling.changes_logits or self.must_begin

    @property
    def must_begin(self) -> bool:
        """Whether the next token is the request's first_token_id."""
        return self.request.first_token_id is not None and self.num_output_tokens == 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.request.prompt_token_ids) :]

    @property
    def order(self) -> tuple[int, int, int]:
        """Lower runs earlier: priority, then arrival."""
        return (self.request.priority, self.request.arrival, self.index)

    def append(self, token_id: int) -> None:
        """Adds a sampled token and decides whether the sequence ends with it."""
        self.token_ids.append(token_id)
        if self.output_counts is not None:
            self.output_counts[token_id] += 1
        sampling, num_output = self.request.sampling, self.num_output_tokens
        if token_id in sampling.stop_token_ids and num_output >= sampling.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif num_output >= sampling.max_tokens:
            self.finish_reason = FinishReason.LENGTH
