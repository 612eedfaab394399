"""Owns offline inference: the frontend's text code and the executor's engine in one process, without gRPC."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from forebay.errors import InvalidRequest, NotOffered
from forebay.outputs import CompletionOutput, Logprob, RequestOutput
from forebay.sampling_params import SamplingParams
from forebay.v1 import prompt_pb2

if TYPE_CHECKING:
    from gpu_executor.engine import StepOutput, TokenOutput
    from gpu_executor.sampler import TokenLogprobs

PromptInput = str | dict[str, Any]


class LLM:
    """A model in this process. Use it from one thread at a time, and close it (or use `with`) to free its memory.

    Arguments have vLLM's names and meanings; see `forebay executor --help`. A folder without a tokenizer serves token
    ids. Raises NotOffered for a task or an architecture that is not served, CheckpointError for files that cannot be read.
    """

    def __init__(
        self,
        model: str,
        *,
        task: str = "generate",
        tokenizer: str | None = None,
        revision: str | None = None,
        download_dir: str | None = None,
        dtype: str = "auto",
        load_format: str = "auto",
        device: str = "auto",
        hf_overrides: dict[str, Any] | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        num_threads: int | None = None,
        seed: int = 0,
        disable_tqdm: bool = False,
    ) -> None:
        from pathlib import Path

        from forebay.hub import resolve_model
        from gpu_executor.config import ExecutorConfig
        from gpu_executor.startup import build_engine
        from preprocess.preprocessor import Preprocessor

        if task not in ("auto", "generate"):
            raise NotOffered(f"task {task!r} is not offered; this version generates text (task='generate')")
        folder = resolve_model(model, revision=revision, download_dir=download_dir, weights=load_format != "dummy")
        tokenizer_folder = (
            resolve_model(tokenizer, revision=None, download_dir=download_dir, weights=False) if tokenizer else None
        )
        self._show_progress = not disable_tqdm
        self._preprocessor = Preprocessor.load(Path(folder), tokenizer_folder=tokenizer_folder)
        config = ExecutorConfig(
            model=str(folder), dtype=dtype, load_format=load_format, device=device, hf_overrides=hf_overrides,
            max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size, enable_prefix_caching=enable_prefix_caching, kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization, num_threads=num_threads, seed=seed,
        )  # fmt: skip
        self._engine, self._info = build_engine(config, progress=self._show_progress)
        self._lock = threading.Lock()
        self._ids = itertools.count()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the weights and the KV cache. The object cannot be used after this."""
        self._engine = None

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        priority: Sequence[int] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continues prompts: texts, `{"prompt": …}` or `{"prompt_token_ids": […]}`, one or many; outputs in their order.

        One SamplingParams serves all prompts, or there is one for each. Everything is checked before anything runs, so a
        bad prompt raises InvalidRequest and costs nothing.
        """
        given = _prompt_list(prompts, prompt_token_ids)
        return self._run([_to_prompt(prompt) for prompt in given], sampling_params, priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several; a message is `{"role": "user", "content": "…"}`."""
        from forebay.client import chat_prompt

        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        prompts = [
            chat_prompt(
                conversation, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, None, use_tqdm)

    def _run(
        self,
        prompts: list[prompt_pb2.Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if self._engine is None:
            raise RuntimeError("this LLM was closed")
        params = _param_list(sampling_params, len(prompts))
        if priority is not None and len(priority) != len(prompts):
            raise InvalidRequest(f"there are {len(prompts)} prompts and {len(priority)} priorities")
        with self._lock:
            runs = [
                _Run(self, next(self._ids), prompt, param, priority[i] if priority else 0)
                for i, (prompt, param) in enumerate(zip(prompts, params, strict=True))
            ]
            self._step_until_done(runs, show=use_tqdm and self._show_progress)
        return [run.output() for run in runs]

    def _step_until_done(self, runs: list[_Run], *, show: bool) -> None:
        engine, by_key = self._engine, {run.key: run for run in runs}
        waiting = runs[::-1]
        with tqdm(total=len(runs), desc="generating", unit="prompt", disable=None if show else True) as bar:
            try:
                while waiting or engine.has_work:
                    while waiting and len(engine.scheduler.waiting) < engine.scheduler.max_num_seqs:
                        engine.add(waiting.pop().request)
                    self._deliver(engine.step(), by_key, bar)
            except BaseException:  # leave nothing behind, a KeyboardInterrupt included
                for key in by_key:
                    engine.abort(key)
                raise

    def _deliver(self, output: StepOutput, by_key: dict[object, _Run], bar: tqdm) -> None:
        for _, error in output.failed:
            raise error
        for item in output.prompt_logprobs:
            by_key[item.request.key].add_prompt_logprobs(item.entries)
        for token in output.tokens:
            run = by_key[token.sequence.request.key]
            if run.add_token(token):  # a stop string: the rest is not wanted
                self._engine.abort(run.key, token.sequence.index)
            if run.request.finished:
                bar.update()


class _Run:
    """One prompt on its way through the engine."""

    def __init__(self, llm: LLM, number: int, prompt: prompt_pb2.Prompt, params: SamplingParams, priority: int) -> None:
        from frontend.detokenizer import SequenceText
        from frontend.sampling import resolve_sampling
        from gpu_executor.request import Request
        from gpu_executor.submission import read_sampling

        preprocessor, info = llm._preprocessor, llm._info
        self._preprocessor = preprocessor
        self._prompt = prompt.text if prompt.WhichOneof("kind") == "text" else None
        proto = params.to_proto()
        token_ids = preprocessor.encode(prompt)
        if proto.HasField("truncate_prompt_tokens"):
            token_ids = token_ids[-proto.truncate_prompt_tokens :]
        resolved = resolve_sampling(
            proto,
            defaults=preprocessor.default_sampling,
            prompt_len=len(token_ids),
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            preprocessor=preprocessor,
        )
        sampling = read_sampling(resolved.executor, info.eos_token_ids, info.vocab_size)
        self.key, self._params = number, params
        self.request = Request(number, token_ids, sampling, priority=priority)
        llm._engine.check(self.request)
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
        self._started = time.monotonic()
        self._first_token_s: float | None = None

    def add_token(self, token: TokenOutput) -> bool:
        """Takes a token; whether a stop string ended its sequence."""
        from gpu_executor.request import FinishReason

        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._started
        sequence = self._sequences[token.sequence.index]
        delta = sequence.text.push([token.token_id], finished_by_stop_token=token.finish_reason is FinishReason.STOP)
        sequence.parts.append(delta.text)
        if delta.num_tokens:
            sequence.token_ids.append(token.token_id)
            if token.logprobs is not None:
                sequence.logprobs.append(self._logprobs(token.token_id, token.logprobs))
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
        assert self._prompt_logprobs is not None
        for entry in entries:
            self._prompt_logprobs.append(
                self._logprobs(self.request.prompt_token_ids[len(self._prompt_logprobs)], entry)
            )

    def _logprobs(self, token_id: int, entry: TokenLogprobs) -> dict[int, Logprob]:
        """By token id: the token that stands here, the likeliest, and those asked for by id."""
        decode = self._preprocessor.decode if self._preprocessor.has_tokenizer else lambda ids, **_: None
        found = {token_id: Logprob(entry.logprob, entry.rank, decode([token_id], skip_special_tokens=False))}
        for rank, (other, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
            known_rank = rank if rank <= (self._params.logprobs or self._params.prompt_logprobs or 0) else None
            found.setdefault(other, Logprob(logprob, known_rank, decode([other], skip_special_tokens=False)))
        return found

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
            finished=True,
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


def _prompt_list(
    prompts: PromptInput | Sequence[PromptInput] | None,
    prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None,
) -> list[PromptInput]:
    if (prompts is None) == (prompt_token_ids is None):
        raise InvalidRequest("give either prompts or prompt_token_ids")
    if prompt_token_ids is not None:
        one = not prompt_token_ids or isinstance(prompt_token_ids[0], int)
        return [{"prompt_token_ids": ids} for ids in ([prompt_token_ids] if one else prompt_token_ids)]
    return [prompts] if isinstance(prompts, (str, dict)) else list(prompts or ())


def _to_prompt(prompt: PromptInput) -> prompt_pb2.Prompt:
    if isinstance(prompt, str):
        return prompt_pb2.Prompt(text=prompt)
    if not isinstance(prompt, dict):
        raise InvalidRequest(f"a prompt is a str or a dict, not {type(prompt).__name__}")
    unknown = set(prompt) - {"prompt", "prompt_token_ids"}
    if unknown:
        raise InvalidRequest(f"a prompt has no key {', '.join(sorted(unknown))}; text and token ids are taken")
    if "prompt_token_ids" in prompt:
        try:
            return prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=prompt["prompt_token_ids"]))
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"prompt_token_ids must be non-negative integers: {error}") from None
    return prompt_pb2.Prompt(text=prompt["prompt"])


def _param_list(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"there are {count} prompts and {len(params)} sampling_params")
    return list(params)
