"""Owns how a frontend's answers become the outputs that Python users get."""

from __future__ import annotations

from collections.abc import Iterable

from forebay.outputs import CompletionOutput, Logprob, RequestOutput, TextDelta, logprobs_by_id
from forebay.sampling_params import SamplingParams
from forebay.v1 import generation_pb2 as api
from forebay.v1 import prompt_pb2

_FINISH_REASONS = {
    api.FINISH_REASON_UNSPECIFIED: None,
    api.FINISH_REASON_STOP: "stop",
    api.FINISH_REASON_LENGTH: "length",
}  # another value is a newer server's: "other"


class StreamFacts:
    """What a stream tells beside its text: some with the first delta, the counts with the last. None until then."""

    def __init__(self, params: SamplingParams) -> None:
        self.request_id: str | None = None
        self.seed: int | None = None
        self.num_prompt_tokens: int | None = None
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self.num_completion_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self._params = params

    def _read(self, response: api.StreamGenerateResponse) -> list[TextDelta]:
        """Notes what a message tells; its deltas."""
        if response.HasField("start"):
            start = response.start
            self.request_id, self.seed, self.num_prompt_tokens = start.request_id, start.seed, start.prompt_tokens
            self.prompt_logprobs = to_prompt_logprobs(start.prompt_logprobs, self._params)
        if response.HasField("usage"):
            self.num_completion_tokens = response.usage.completion_tokens
            self.num_cached_tokens = response.usage.cached_prompt_tokens
        return [to_delta(delta, self._params) for delta in response.deltas]


def to_request_output(
    response: api.GenerateResponse, prompt: prompt_pb2.Prompt, params: SamplingParams
) -> RequestOutput:
    """What became of a prompt."""
    kind = prompt.WhichOneof("kind")
    return RequestOutput(
        request_id=response.request_id,
        prompt=prompt.text if kind == "text" else None,
        prompt_token_ids=list(prompt.token_ids.ids) if kind == "token_ids" else None,
        outputs=[_completion(sequence, params) for sequence in response.sequences],
        prompt_logprobs=to_prompt_logprobs(response.prompt_logprobs, params),
        num_prompt_tokens=response.usage.prompt_tokens,
        num_cached_tokens=response.usage.cached_prompt_tokens,
        seed=response.seed,
    )


def to_delta(delta: api.SequenceDelta, params: SamplingParams) -> TextDelta:
    """What is new of a sequence."""
    return TextDelta(
        index=delta.index,
        text=delta.text,
        token_ids=list(delta.token_ids),
        logprobs=_logprobs(delta.logprobs, params),
        finish_reason=_FINISH_REASONS.get(delta.finish_reason, "other"),
        stop_reason=_stop_reason(delta, params),
    )


def to_prompt_logprobs(
    entries: Iterable[api.TokenLogprobs], params: SamplingParams
) -> list[dict[int, Logprob] | None] | None:
    """By position, the first of which has none; None where they were not asked for."""
    if params.prompt_logprobs is None:
        return None
    return [None, *(logprobs_by_id(entry.token_id, entry, params.prompt_logprobs) for entry in entries)]


def _completion(sequence: api.GeneratedSequence, params: SamplingParams) -> CompletionOutput:
    asked = params.logprobs is not None
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text,
        token_ids=list(sequence.token_ids),
        cumulative_logprob=sum(entry.logprob for entry in sequence.logprobs) if asked else None,
        logprobs=_logprobs(sequence.logprobs, params),
        finish_reason=_FINISH_REASONS.get(sequence.finish_reason, "other"),
        stop_reason=_stop_reason(sequence, params),
    )


def _logprobs(entries: Iterable[api.TokenLogprobs], params: SamplingParams) -> list[dict[int, Logprob]] | None:
    if params.logprobs is None:
        return None
    return [logprobs_by_id(entry.token_id, entry, params.logprobs) for entry in entries]


def _stop_reason(sequence: api.GeneratedSequence | api.SequenceDelta, params: SamplingParams) -> int | str | None:
    """As in vLLM: the model's own end of sequence is no reason, a stop token that was asked for is."""
    if sequence.HasField("stop_string"):
        return sequence.stop_string
    if sequence.HasField("stop_token_id") and sequence.stop_token_id in (params.stop_token_ids or ()):
        return sequence.stop_token_id
    return None
