"""Owns one prompt on its way through the engine of an LLM: what it asks for, and the text and tokens that come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forebay.llm_media import media_inputs
from forebay.outputs import CompletionOutput, Logprob, RequestOutput, logprobs_by_id
from forebay.sampling_params import SamplingParams
from forebay.v1 import prompt_pb2

if TYPE_CHECKING:
    from gpu_executor.engine import Engine, TokenOutput
    from gpu_executor.model_info import ModelInfo
    from gpu_executor.sampler import TokenLogprobs
    from preprocess.preprocessor import Preprocessor


class GenerationRun:
    """One prompt on its way through the engine."""

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        preprocessor: Preprocessor,
        number: int,
        prompt: prompt_pb2.Prompt,
        params: SamplingParams,
        priority: int,
    ) -> None:
        from frontend.detokenizer import SequenceText
        from frontend.sampling import resolve_sampling
        from gpu_executor.request import Request
        from gpu_executor.submission import read_sampling

        self._preprocessor = preprocessor
        self._prompt = prompt.text if prompt.WhichOneof("kind") == "text" else None
        proto = params.to_proto()
        cut = proto.truncate_prompt_tokens if proto.HasField("truncate_prompt_tokens") else None
        decoder_token_ids = preprocessor.decoder_prompt(prompt)
        limit = info.max_model_len if cut is None and decoder_token_ids is None else None
        encoded = preprocessor.encode_prompt(prompt, max_tokens=limit).end(cut)
        token_ids = encoded.token_ids
        encoder_token_ids: list[int] | None = None
        if decoder_token_ids is not None:
            encoder_token_ids, token_ids = token_ids, decoder_token_ids
        resolved = resolve_sampling(
            proto,
            defaults=preprocessor.default_sampling,
            prompt_len=len(token_ids),
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            preprocessor=preprocessor,
        )
        sampling = read_sampling(resolved.executor, info.eos_token_ids, info.vocab_size)
        self.key, self._params, self.reported = number, params, False
        self.request = Request(
            number,
            token_ids,
            sampling,
            priority=priority,
            encoder_token_ids=encoder_token_ids,
            media=media_inputs(encoded.media),
            positions=encoded.positions,
        )
        engine.check(self.request)
        self._sequences = [
            _RunSequence(
                SequenceText(
                    preprocessor.tokenizer,
                    stop=resolved.stop,
                    skip_special_tokens=resolved.skip_special_tokens,
                    include_stop_str_in_output=resolved.include_stop,
                    min_tokens=sampling.min_tokens,
                )
            )
            for _ in range(sampling.n)
        ]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if sampling.prompt_logprobs is None else [None]
        )

    def add_token(self, token: TokenOutput) -> bool:
        """Takes a token; whether a stop string ended its sequence."""
        from gpu_executor.request import FinishReason

        sequence = self._sequences[token.sequence.index]
        delta = sequence.text.push([token.token_id], finished_by_stop_token=token.finish_reason is FinishReason.STOP)
        sequence.parts.append(delta.text)
        if delta.num_tokens:
            sequence.token_ids.append(token.token_id)
            if token.logprobs is not None:
                num_top = self._params.logprobs or 0
                sequence.logprobs.append(logprobs_by_id(token.token_id, token.logprobs, num_top, self._decoded))
                sequence.cumulative_logprob += token.logprobs.logprob
        if delta.stop_string is not None:
            sequence.finish_reason, sequence.stop_reason = "stop", delta.stop_string
            return True
        if token.finish_reason is not None:
            sequence.parts.append(sequence.text.finish())
            sequence.finish_reason = token.finish_reason.value
            explicit = token.finish_reason is FinishReason.STOP and token.token_id in self._params.stop_token_ids
            sequence.stop_reason = token.token_id if explicit else None
        return False

    def add_prompt_logprobs(self, entries: list[TokenLogprobs]) -> None:
        found = self._prompt_logprobs
        assert found is not None
        for entry in entries:
            token_id = self.request.prompt_token_ids[len(found)]
            found.append(logprobs_by_id(token_id, entry, self._params.prompt_logprobs or 0, self._decoded))

    def _decoded(self, token_id: int) -> str | None:
        if not self._preprocessor.has_tokenizer:
            return None
        return self._preprocessor.decode([token_id], skip_special_tokens=False)

    def output(self) -> RequestOutput:
        return RequestOutput(
            request_id=str(self.key),
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=[
                CompletionOutput(
                    index=index,
                    text="".join(sequence.parts),
                    token_ids=sequence.token_ids,
                    logprobs=sequence.logprobs if self._params.logprobs is not None else None,
                    cumulative_logprob=sequence.cumulative_logprob if self._params.logprobs is not None else None,
                    finish_reason=sequence.finish_reason,
                    stop_reason=sequence.stop_reason,
                )
                for index, sequence in enumerate(self._sequences)
            ],
            encoder_prompt_token_ids=self.request.encoder_token_ids or None,
            num_prompt_tokens=self.request.num_prompt_tokens + len(self.request.encoder_token_ids),
            num_cached_tokens=self.request.num_cached_tokens,
            seed=self.request.sampling.seed,
        )


class _RunSequence:
    """What one sequence has given so far."""

    def __init__(self, text: Any) -> None:
        self.text = text
        self.parts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
