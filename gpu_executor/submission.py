"""Owns the reading of Submit messages: from the wire's fields to a Request, checked as if no frontend had checked them."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf

from forebay.errors import InvalidRequest
from forebay.executor.v1 import executor_pb2
from forebay.run_lengths import lengthen, lengthen_positions
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.model_pb2 import MODEL_TASK_GENERATE, MODEL_TASK_UNSPECIFIED, ModelTask
from gpu_executor.media import MediaInput
from gpu_executor.request import PoolingParams, Request, Sampling

MAX_N, MAX_LOGPROBS, MAX_BIASES, MAX_BAD_WORDS, MAX_IDS = 128, 20, 300, 256, 1024


def read_sampling(params: executor_pb2.SamplingParams, eos_token_ids: tuple[int, ...], vocab_size: int) -> Sampling:
    """The engine's form of the wire's SamplingParams; raises InvalidRequest for what could hurt the engine."""
    stop = set(params.stop_token_ids)
    if not params.ignore_eos:
        stop.update(eos_token_ids)
    sampling = Sampling(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        n=params.n or 1,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
        logit_bias=tuple(zip(params.logit_bias_ids, params.logit_bias_values, strict=False)),
        bad_words=tuple(tuple(word.token_ids) for word in params.bad_words),
        allowed_token_ids=tuple(params.allowed_token_ids),
        stop_token_ids=frozenset(stop),
        seed=params.seed,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        logprob_token_ids=tuple(params.logprob_token_ids),
    )
    _check_ranges(sampling, params)
    _check_ids(sampling, params, vocab_size)
    return sampling


def read_pooling(params: executor_pb2.PoolingParams) -> PoolingParams:
    """The engine's form of the wire's PoolingParams, which the engine checks; raises InvalidRequest for no known task."""
    if params.task not in ModelTask.values() or params.task in (MODEL_TASK_UNSPECIFIED, MODEL_TASK_GENERATE):
        raise InvalidRequest(f"{params.task} is not the number of a task that pools")
    return PoolingParams(
        task=ModelTask.Name(params.task).removeprefix("MODEL_TASK_").lower(),
        token_type_ids=tuple(params.token_type_ids),
        dimensions=params.dimensions if params.HasField("dimensions") else None,
        normalize=params.normalize if params.HasField("normalize") else None,
        activation=params.activation if params.HasField("activation") else None,
        num_instruction_tokens=params.num_instruction_tokens,
    )


def read_submit(
    submit: executor_pb2.Submit,
    *,
    key: Hashable,
    owner: object,
    eos_token_ids: tuple[int, ...],
    vocab_size: int,
    media: SequenceOf[MediaInput] = (),
) -> Request:
    """The Request of a Submit, whose media is there."""
    pooling = sampling = None
    if submit.HasField("pooling"):
        pooling = read_pooling(submit.pooling)
        if submit.resumed:
            raise InvalidRequest("a request that pools cannot be resumed")
    else:
        sampling = read_sampling(submit.sampling, eos_token_ids, vocab_size)
    resumed = {r.sequence_index: (list(r.token_ids), r.finished) for r in submit.resumed}
    if sampling is not None and any(index >= sampling.n for index in resumed):
        raise InvalidRequest(f"a resumed sequence's index is not below n = {sampling.n}")
    token_ids = list(submit.prompt_token_ids)
    if submit.prompt_token_counts:
        token_ids = lengthen(token_ids, submit.prompt_token_counts).tolist()
    deadline = time.monotonic() + submit.timeout_ms / 1000 if submit.HasField("timeout_ms") else None
    return Request(
        key,
        token_ids,
        sampling,
        pooling=pooling,
        owner=owner,
        epoch=submit.epoch,
        priority=submit.priority,
        deadline=deadline,
        salt=submit.cache_salt,
        encoder_token_ids=list(submit.encoder_token_ids),
        media=media,
        positions=lengthen_positions(
            submit.position_steps, submit.position_step_counts, submit.num_position_axes, len(token_ids)
        ),
        resumed=resumed,
    )


def _check_ranges(sampling: Sampling, params: executor_pb2.SamplingParams) -> None:
    floats = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    for name in floats:
        if not math.isfinite(getattr(sampling, name)):
            _refuse(f"{name} is {getattr(sampling, name)}; it must be a finite number")
    ranges = (
        ("max_tokens", 1, math.inf), ("n", 1, MAX_N), ("temperature", 0, math.inf), ("min_p", 0, 1),
        ("logprobs", 0, MAX_LOGPROBS), ("prompt_logprobs", 0, MAX_LOGPROBS),
    )  # fmt: skip
    for name, least, most in ranges:
        value = getattr(sampling, name)
        if value is not None and not least <= value <= most:
            _refuse(f"{name} is {value}; it must be in [{least}, {most}]")
    for name in ("top_p", "repetition_penalty"):
        if getattr(sampling, name) <= 0:
            _refuse(f"{name} is {getattr(sampling, name)}; it must be above 0")
    if len(params.logit_bias_ids) != len(params.logit_bias_values):
        _refuse("logit_bias_ids and logit_bias_values differ in length")
    if not all(math.isfinite(value) for value in params.logit_bias_values):
        _refuse("logit_bias has a value that is not a finite number")
    counts = (
        ("logit_bias", sampling.logit_bias, MAX_BIASES), ("bad_words", sampling.bad_words, MAX_BAD_WORDS),
        ("allowed_token_ids", sampling.allowed_token_ids, MAX_IDS), ("stop_token_ids", sampling.stop_token_ids, MAX_IDS),
        ("logprob_token_ids", sampling.logprob_token_ids, MAX_IDS),
    )  # fmt: skip
    for name, values, most in counts:
        if len(values) > most:
            _refuse(f"{name} has {len(values)} entries; at most {most} are taken")
    if not all(sampling.bad_words):
        _refuse("bad_words has an empty sequence")


def _check_ids(sampling: Sampling, params: executor_pb2.SamplingParams, vocab_size: int) -> None:
    ids = [
        *(token_id for token_id, _ in sampling.logit_bias), *(i for word in sampling.bad_words for i in word),
        *sampling.allowed_token_ids, *sampling.logprob_token_ids, *params.stop_token_ids,
    ]  # fmt: skip
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(
            f"token id {max(ids)} is not below the vocabulary's {vocab_size:,} entries",
            ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE,
        )


def _refuse(message: str) -> None:
    raise InvalidRequest(message, ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE)
