"""Owns offline inference: the frontend's text code and the executor's engine in one process, without gRPC."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from forebay.client_requests import Messages, PromptInput, chat_prompt, to_prompts
from forebay.errors import InvalidRequest, NotOffered
from forebay.llm_generation import GenerationRun
from forebay.llm_pooling import InputReader, PoolingRun, cosine_scores
from forebay.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
)
from forebay.pooling_params import PoolingParams
from forebay.sampling_params import SamplingParams
from forebay.v1 import prompt_pb2

if TYPE_CHECKING:
    from gpu_executor.engine import Engine, StepOutput
    from preprocess.media.settings import MediaSettings
    from preprocess.pooling_encoder import PoolingInput


class LLM:
    """A model in this process. Use it from one thread at a time, and close it (or use `with`) to free its memory.

    Arguments have vLLM's names and meanings; see `forebay executor --help`. `limit_mm_per_prompt` says how many images, videos
    and sounds a prompt can have (16, 4, 16), `media_io_kwargs` how many frames of a video's file are taken ({"video":
    {"num_frames": 32}}), `allowed_media_domains` from which hosts URLs are fetched (none). A folder without a tokenizer serves
    token ids. Code of a checkpoint is never run: `trust_remote_code` is accepted for checkpoints that do
    without. Raises NotOffered for a task, architecture or tokenizer that is not served, CheckpointError for files that cannot be
    read.
    """

    def __init__(
        self,
        model: str,
        *,
        task: str = "auto",
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        download_dir: str | None = None,
        dtype: str = "auto",
        load_format: str = "auto",
        device: str = "auto",
        hf_overrides: dict[str, Any] | None = None,
        override_pooler_config: dict[str, Any] | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        limit_mm_per_prompt: dict[str, int] | None = None,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        allowed_media_domains: tuple[str, ...] = (),
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        batch_invariant: bool = False,
        num_threads: int | None = None,
        seed: int = 0,
        disable_tqdm: bool = False,
    ) -> None:
        from pathlib import Path

        from forebay.hub import resolve_model
        from gpu_executor.config import TASKS, ExecutorConfig
        from gpu_executor.startup import build_engine
        from preprocess.preprocessor import Preprocessor

        if task not in TASKS:
            raise NotOffered(f"task {task!r} is not offered; there are {', '.join(TASKS)}")
        folder = resolve_model(model, revision=revision, download_dir=download_dir, weights=load_format != "dummy")
        tokenizer_folder = (
            resolve_model(tokenizer, revision=None, download_dir=download_dir, weights=False) if tokenizer else None
        )
        self._show_progress = not disable_tqdm
        self._preprocessor = Preprocessor.load(
            Path(folder),
            tokenizer_folder=tokenizer_folder,
            trust_remote_code=trust_remote_code,
            media=_media_settings(limit_mm_per_prompt or {}, media_io_kwargs or {}, tuple(allowed_media_domains)),
            download_dir=download_dir,
            hf_overrides=hf_overrides,
        )
        config = ExecutorConfig(
            model=str(folder), download_dir=download_dir, dtype=dtype, load_format=load_format, device=device,
            hf_overrides=hf_overrides, task=task, override_pooler_config=override_pooler_config,
            max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size, enable_prefix_caching=enable_prefix_caching, kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization, batch_invariant=batch_invariant, num_threads=num_threads,
            seed=seed,
        )  # fmt: skip
        self._engine, self._info = build_engine(config, progress=self._show_progress)
        self._reader = InputReader(self._preprocessor, self._info)
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
        """Continues prompts: texts, token ids, or dictionaries of either as in vLLM, one or many; outputs in their order.

        A dictionary can have `multi_modal_data`: {"image" | "video" | "audio": one item or a list}. An item is a picture of PIL,
        uint8 pixels (H, W, 3), frames (F, H, W, 3) or (frames, fps), (samples, rate), an encoded file as bytes or pathlib.Path,
        or precomputed embeddings: floats (rows, D), or {"image_embeds": ..., "image_grid_thw": ...}. Texts for a model that
        takes media are in the model's own format: names of special tokens in them are those tokens.

        One SamplingParams serves all prompts, or there is one for each. Everything is checked before anything runs, so a
        bad prompt raises InvalidRequest and costs nothing.
        """
        if (prompts is None) == (prompt_token_ids is None):
            raise InvalidRequest("give either prompts or prompt_token_ids")
        if prompts is None:
            prompts = prompt_token_ids or [[]]
        return self._run(self._prompts(prompts), sampling_params, priority, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several; a message is `{"role": "user", "content": "…"}`; see chat_prompt."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            chat_prompt(
                conversation, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, None, use_tqdm)

    def embed(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        *,
        pooling_params: PoolingParams | None = None,
        prompt_name: str = "",
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """One vector per input, whose directions tell how alike the inputs are; inputs are as in `generate`, or chats.

        `prompt_name` is which of the checkpoint's named prompts, such as "query", stands before each text.
        """
        runs = self._pool(self._prompts(prompts), "embed", pooling_params, prompt_name, use_tqdm)
        return [run.embedding() for run in runs]

    def classify(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """How likely each class is, per input."""
        runs = self._pool(self._prompts(prompts), "classify", pooling_params, "", use_tqdm)
        return [run.classes(self._preprocessor.class_labels) for run in runs]

    def encode(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model makes of each input, as a tensor: of a reward model a row for each token or step."""
        task = next((task for task in self._info.tasks if task != "generate"), "reward")
        runs = self._pool(self._prompts(prompts), task, pooling_params, "", use_tqdm)
        by_token = self._engine.pooler.kind in ("all", "step")
        return [run.data(by_token=by_token) for run in runs]

    def score(
        self,
        data_1: PromptInput | Sequence[PromptInput],
        data_2: PromptInput | Sequence[PromptInput] | None = None,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well each document of `data_2` answers its query of `data_1`, or the only one; cosines of a model that embeds.

        Without `data_2`, each of `data_1` is a whole pair, as token ids (and `token_type_ids`).
        """
        self._reader.check_task("score", "embed")
        params, first = pooling_params or PoolingParams(), self._prompts(data_1)
        if data_2 is None:
            return [run.score() for run in self._pool(first, "score", params, "", use_tqdm)]
        second = self._prompts(data_2)
        if len(first) not in (1, len(second)):
            raise InvalidRequest(f"there are {len(first)} queries and {len(second)} documents")
        if "score" not in self._info.tasks:
            runs = self._pool([*first, *second], "embed", params, "", use_tqdm)
            return cosine_scores(runs[: len(first)], runs[len(first) :])
        queries = first * len(second) if len(first) == 1 else first
        pairs = self._reader.pairs(queries, second, params)
        return [run.score() for run in self._pool_inputs(pairs, "score", params, use_tqdm)]

    def _prompts(self, prompts: PromptInput | Sequence[PromptInput]) -> list[prompt_pb2.Prompt]:
        """The prompts' messages. Texts for a model that takes media are in its own format, placeholders and all."""
        return to_prompts(prompts, parse_special_tokens=bool(self._preprocessor.modalities))

    def _pool(
        self,
        prompts: list[prompt_pb2.Prompt],
        task: str,
        params: PoolingParams | None,
        prompt_name: str,
        use_tqdm: bool,
    ) -> list[PoolingRun]:
        params = params or PoolingParams()
        self._reader.check_task(task)
        return self._pool_inputs(self._reader.inputs(prompts, params, prompt_name), task, params, use_tqdm)

    def _pool_inputs(
        self, inputs: list[PoolingInput], task: str, params: PoolingParams, use_tqdm: bool
    ) -> list[PoolingRun]:
        with self._lock:
            engine = self._open_engine()
            runs = [PoolingRun(engine, next(self._ids), found, task, params) for found in inputs]
            self._step_until_done(runs, show=use_tqdm and self._show_progress)
        return runs

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("this LLM was closed")
        return self._engine

    def _run(
        self,
        prompts: list[prompt_pb2.Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        engine = self._open_engine()
        params = _param_list(sampling_params, len(prompts))
        if priority is not None and len(priority) != len(prompts):
            raise InvalidRequest(f"there are {len(prompts)} prompts and {len(priority)} priorities")
        with self._lock:
            runs = [
                GenerationRun(
                    engine,
                    self._info,
                    self._preprocessor,
                    next(self._ids),
                    prompt,
                    param,
                    priority[i] if priority else 0,
                )
                for i, (prompt, param) in enumerate(zip(prompts, params, strict=True))
            ]
            self._step_until_done(runs, show=use_tqdm and self._show_progress)
        return [run.output() for run in runs]

    def _step_until_done(self, runs: list[GenerationRun] | list[PoolingRun], *, show: bool) -> None:
        engine, by_key = self._engine, {run.key: run for run in runs}
        # The next one is at the end: the engine is given few at a time, so the order among the rest is kept here.
        waiting = sorted(runs, key=lambda run: (run.request.priority, run.key), reverse=True)
        with tqdm(total=len(runs), desc="running", unit="prompt", disable=None if show else True) as bar:
            try:
                while waiting or engine.has_work:
                    while waiting and len(engine.scheduler.waiting) < engine.scheduler.max_num_seqs:
                        engine.add(waiting.pop().request)
                    self._deliver(engine.step(), by_key, bar)
            except BaseException:  # leave nothing behind, a KeyboardInterrupt included
                for key in by_key:
                    engine.abort(key)
                raise

    def _deliver(self, output: StepOutput, by_key: dict[object, Any], bar: tqdm) -> None:
        for _, error in output.failed:
            raise error
        for item in output.prompt_logprobs:
            by_key[item.request.key].add_prompt_logprobs(item.entries)
        for token in output.tokens:
            run = by_key[token.sequence.request.key]
            if run.add_token(token):  # a stop string: the rest is not wanted
                self._engine.abort(run.key, token.sequence.index)
            if run.request.finished and not run.reported:
                run.reported = True
                bar.update()
        for pooled in output.pooled:
            by_key[pooled.request.key].add_rows(pooled)
            bar.update(pooled.finished)


def _media_settings(limits: Mapping[str, int], io: Mapping[str, Any], domains: tuple[str, ...]) -> MediaSettings:
    """Media is decoded in this process: who calls it has the files."""
    from preprocess.media.fetch import UrlFetcher
    from preprocess.media.limits import DEFAULT_ITEMS, MediaLimits, parse_io
    from preprocess.media.settings import MediaSettings

    if unknown := limits.keys() - DEFAULT_ITEMS.keys():
        raise InvalidRequest(f"limit_mm_per_prompt names {min(unknown)!r}; there are {', '.join(DEFAULT_ITEMS)}")
    try:
        sampled_frames = parse_io(io)
    except ValueError as error:
        raise InvalidRequest(f"media_io_kwargs: {error}") from None
    return MediaSettings(
        MediaLimits(items={**DEFAULT_ITEMS, **limits}, sampled_frames=sampled_frames),
        fetch=UrlFetcher(domains) if domains else None,
    )


def _param_list(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"there are {count} prompts and {len(params)} sampling_params")
    return list(params)
