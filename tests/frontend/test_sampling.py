"""A request's sampling parameters: every bound that sampling.proto documents, defaults, and what executors get."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.executor.v1 import executor_pb2
from forebay.v1 import sampling_pb2
from frontend.sampling import MAX_ENTRIES, RANGES, ResolvedSampling, resolve_sampling

PROTO = Path(__file__).parents[2] / "protos" / "forebay" / "v1" / "sampling.proto"
VOCAB_SIZE, MAX_MODEL_LEN, PROMPT_LEN = 200_000, 100, 10
ROOM = MAX_MODEL_LEN - PROMPT_LEN
JUST_ABOVE_ZERO = 2.0**-126


class Words:
    """A preprocessor that spells words with one id a letter, at the start of a text and after a space."""

    def __init__(self, has_tokenizer: bool = True) -> None:
        self.has_tokenizer = has_tokenizer

    def bad_word_ids(self, text: str) -> list[list[int]]:
        ids = [ord(char) for char in text.strip()]
        return [ids, [32, *ids]] if ids else []


def resolve(
    *,
    defaults: sampling_pb2.SamplingParams | None = None,
    has_tokenizer: bool = True,
    prompt_len: int = PROMPT_LEN,
    **fields: Any,
) -> ResolvedSampling:
    return resolve_sampling(
        sampling_pb2.SamplingParams(**fields),
        defaults=defaults or sampling_pb2.SamplingParams(),
        prompt_len=prompt_len,
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        preprocessor=Words(has_tokenizer),
    )


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolve(**fields)
    return caught.value


def biases(*pairs: tuple[int, float]) -> list[sampling_pb2.LogitBias]:
    return [sampling_pb2.LogitBias(token_id=token_id, bias=bias) for token_id, bias in pairs]


def beyond(value: float, direction: int) -> float:
    """The next float32."""
    return value + direction * max(abs(value), 2.0**-20) * 2.0**-22


FLOAT_BOUNDS = {
    "temperature": (0, 100),
    "top_p": (JUST_ABOVE_ZERO, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (JUST_ABOVE_ZERO, 10),
}
INT_BOUNDS = {
    "max_tokens": (1, ROOM),
    "n": (1, 128),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "truncate_prompt_tokens": (1, 2**32 - 1),
}
LIST_ENTRIES = {
    "logit_bias": lambda count: biases(*((i, 1.0) for i in range(count))),
    "bad_words": lambda count: [f"word{i}" for i in range(count)],
    "allowed_token_ids": lambda count: list(range(count)),
    "stop": lambda count: [f"stop{i}" for i in range(count)],
    "stop_token_ids": lambda count: list(range(count)),
    "logprob_token_ids": lambda count: list(range(count)),
}
WITHOUT_BOUNDS = {"min_tokens", "top_k", "include_stop_str_in_output", "ignore_eos", "seed", "skip_special_tokens"}
NEEDS = {"logprob_token_ids": {"logprobs": 1}}


def test_every_field_is_walked():
    walked = FLOAT_BOUNDS.keys() | INT_BOUNDS.keys() | LIST_ENTRIES.keys() | WITHOUT_BOUNDS
    assert walked == set(sampling_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    assert RANGES.keys() == FLOAT_BOUNDS.keys() | INT_BOUNDS.keys()
    assert MAX_ENTRIES.keys() == LIST_ENTRIES.keys()


@pytest.mark.parametrize("name", [*FLOAT_BOUNDS, *INT_BOUNDS])
def test_value_at_each_bound_passes(name):
    for value in (FLOAT_BOUNDS | INT_BOUNDS)[name]:
        executor = resolve(**{name: value}).executor
        if name != "truncate_prompt_tokens":  # concerns the prompt alone
            assert getattr(executor, name) == pytest.approx(value, abs=0)


@pytest.mark.parametrize("name", FLOAT_BOUNDS)
@pytest.mark.parametrize("case", ["below", "above", "nan", "inf", "-inf"])
def test_number_out_of_range_is_refused_by_name(name, case):
    least, most = FLOAT_BOUNDS[name]
    least = 0.0 if least == JUST_ABOVE_ZERO else beyond(least, -1)
    value = {"below": least, "above": beyond(most, 1)}.get(case)
    error = refused(**{name: float(case) if value is None else value})
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == [f"sampling.{name}"]
    assert error.message.startswith(f"{name} is ") and f"{FLOAT_BOUNDS[name][1]:,}]" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("n", 0), ("n", 129), ("logprobs", 21), ("prompt_logprobs", 21), ("truncate_prompt_tokens", 0)],
)
def test_count_out_of_range_is_refused_by_name(name, value):
    error = refused(**{name: value})
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == [f"sampling.{name}"]
    assert error.message.startswith(f"{name} is {value}; it must be ")


@pytest.mark.parametrize("name", LIST_ENTRIES)
def test_list_may_be_as_long_as_its_cap_and_no_longer(name):
    most, needed = MAX_ENTRIES[name], NEEDS.get(name, {})
    resolve(**{name: LIST_ENTRIES[name](most)}, **needed)
    error = refused(**{name: LIST_ENTRIES[name](most + 1)}, **needed)
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == [f"sampling.{name}"]
    assert f"{most + 1:,}" in error.message and f"{most:,}" in error.message


def test_caps_are_those_that_the_proto_documents():
    comments = dict(re.findall(r"// (.*)\n  (?:optional |repeated )?\w+ (\w+) = ", PROTO.read_text()))
    documented = {name: comment for comment, name in comments.items()}
    for name, most in MAX_ENTRIES.items():
        assert f"at most {most:,}" in documented[name]
    for name, allowed in RANGES.items():
        spelled = str(allowed).removeprefix("in ")
        spelled = {"n": "1 to 128", "temperature": "at most 100"}.get(name, spelled)
        spelled = "0 to 20" if "logprobs" in name else spelled
        assert spelled in documented[name], name


@pytest.mark.parametrize("name", ["stop", "bad_words"])
@pytest.mark.parametrize("unit", ["x", "é", "😀"], ids=["ascii", "two-bytes", "four-bytes"])
def test_texts_are_measured_in_bytes(name, unit):
    text = unit * (256 // len(unit.encode()))
    resolve(**{name: [text]})
    error = refused(**{name: ["fine", text + "!"]})
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == [f"sampling.{name}[1]"]
    assert "257 bytes" in error.message and "256" in error.message


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_empty_text_is_refused(name):
    error = refused(**{name: ["fine", ""]})
    assert error.reason_name == "INVALID_FIELD"
    assert [field for field, _ in error.fields] == [f"sampling.{name}[1]"]


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_text_needs_a_tokenizer(name):
    with pytest.raises(FailedPrecondition) as caught:
        resolve(has_tokenizer=False, **{name: ["word"]})
    assert caught.value.reason_name == "NO_TOKENIZER"
    assert [field for field, _ in caught.value.fields] == [f"sampling.{name}"]
    assert resolve(has_tokenizer=False, stop_token_ids=[1]).stop == ()


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids", "logprob_token_ids"])
def test_ids_are_below_the_vocabulary_size(name):
    assert list(getattr(resolve(**{name: [0, VOCAB_SIZE - 1]}, logprobs=1).executor, name)) == [0, VOCAB_SIZE - 1]
    error = refused(**{name: [0, VOCAB_SIZE]}, logprobs=1)
    assert error.reason_name == "TOKEN_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == [f"sampling.{name}"]
    assert str(VOCAB_SIZE) in error.message


def test_bias_is_for_an_id_of_the_vocabulary():
    resolve(logit_bias=biases((VOCAB_SIZE - 1, 1.0)))
    error = refused(logit_bias=biases((VOCAB_SIZE, 1.0)))
    assert error.reason_name == "TOKEN_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == ["sampling.logit_bias"]


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_bias_may_be_at_its_bounds(bias):
    executor = resolve(logit_bias=biases((7, bias), (8, 0.0))).executor
    assert list(executor.logit_bias_ids) == [7, 8]
    assert list(executor.logit_bias_values) == [bias, 0.0]


@pytest.mark.parametrize("bias", [beyond(-100.0, -1), beyond(100.0, 1), math.nan, math.inf, -math.inf])
def test_bias_out_of_range_is_refused(bias):
    error = refused(logit_bias=biases((7, 1.0), (8, bias)))
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == ["sampling.logit_bias[1].bias"]


def test_second_bias_for_a_token_is_refused():
    error = refused(logit_bias=biases((7, 1.0), (8, 1.0), (7, 2.0)))
    assert error.reason_name == "INVALID_FIELD"
    assert [field for field, _ in error.fields] == ["sampling.logit_bias[2].token_id"]


def test_log_probabilities_of_ids_need_logprobs():
    error = refused(logprob_token_ids=[1])
    assert error.reason_name == "INVALID_FIELD"
    assert [field for field, _ in error.fields] == ["sampling.logprob_token_ids"]
    assert list(resolve(logprob_token_ids=[1], logprobs=0).executor.logprob_token_ids) == [1]


# The context.


def test_absent_max_tokens_is_what_the_context_has_room_for():
    assert resolve().executor.max_tokens == ROOM
    assert resolve(prompt_len=MAX_MODEL_LEN - 1).executor.max_tokens == 1


def test_prompt_and_max_tokens_may_fill_the_context_and_no_more():
    error = refused(max_tokens=ROOM + 1)
    assert error.reason_name == "TOO_LONG"
    assert [field for field, _ in error.fields] == ["sampling.max_tokens"]
    assert all(number in error.message for number in ("91", "10", "101", "100"))


@pytest.mark.parametrize("prompt_len", [MAX_MODEL_LEN, MAX_MODEL_LEN + 1])
@pytest.mark.parametrize("given", [{}, {"max_tokens": 1}], ids=["absent", "one"])
def test_prompt_that_fills_the_context_is_refused(prompt_len, given):
    error = refused(prompt_len=prompt_len, **given)
    assert error.reason_name == "TOO_LONG"
    assert [field for field, _ in error.fields] == ["prompt"]
    assert str(prompt_len) in error.message and str(MAX_MODEL_LEN) in error.message


@pytest.mark.parametrize(
    ("given", "most"), [({"max_tokens": 5}, 5), ({}, ROOM)], ids=["of-max-tokens", "of-the-context"]
)
def test_min_tokens_is_at_most_max_tokens(given, most):
    assert resolve(min_tokens=most, **given).executor.min_tokens == most
    error = refused(min_tokens=most + 1, **given)
    assert error.reason_name == "SAMPLING_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == ["sampling.min_tokens"]
    assert str(most + 1) in error.message and str(most) in error.message


# Defaults, and what the two tiers get.


def test_empty_parameters_are_the_documented_defaults():
    resolved = resolve(seed=3)
    expected = executor_pb2.SamplingParams(
        max_tokens=ROOM, n=1, temperature=1.0, top_p=1.0, repetition_penalty=1.0, seed=3
    )
    assert resolved.executor == expected
    assert (resolved.stop, resolved.include_stop, resolved.skip_special_tokens, resolved.n) == ((), False, True, 1)


DEFAULTS = sampling_pb2.SamplingParams(
    temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1, stop=["User:"]
)


def test_absent_fields_take_the_defaults_of_the_model():
    resolved = resolve(defaults=DEFAULTS)
    executor = resolved.executor
    assert (executor.temperature, executor.top_p, executor.min_p, executor.repetition_penalty) == pytest.approx(
        (0.6, 0.9, 0.05, 1.1)
    )
    assert (executor.top_k, resolved.stop) == (20, ("User:",))


def test_given_fields_win_over_the_defaults_of_the_model_even_at_zero():
    given = {"temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.0, "repetition_penalty": 2.0, "stop": ["x", "y"]}
    resolved = resolve(defaults=DEFAULTS, **given)
    assert resolved.stop == ("x", "y")
    assert all(getattr(resolved.executor, name) == value for name, value in given.items() if name != "stop")


def test_neither_the_request_nor_the_defaults_are_changed():
    params, defaults = sampling_pb2.SamplingParams(top_k=3), sampling_pb2.SamplingParams(temperature=0.5)
    resolve_sampling(params, defaults=defaults, prompt_len=1, max_model_len=9, vocab_size=9, preprocessor=Words())
    assert params == sampling_pb2.SamplingParams(top_k=3)
    assert defaults == sampling_pb2.SamplingParams(temperature=0.5)


def test_everything_given_arrives():
    ids = {"allowed_token_ids": [1, 2], "stop_token_ids": [3], "logprob_token_ids": [4, 5]}
    numbers = {
        "max_tokens": 9,
        "min_tokens": 2,
        "n": 3,
        "top_k": 4,
        "seed": 2**64 - 1,
        "logprobs": 0,
        "prompt_logprobs": 5,
    }
    floats = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "presence_penalty": -1.5, "frequency_penalty": 1.5}
    resolved = resolve(
        **ids, **numbers, **floats, repetition_penalty=1.5, ignore_eos=True, logit_bias=biases((6, -2.5)), stop=["a", "b"],
        include_stop_str_in_output=True, skip_special_tokens=False,
    )  # fmt: skip
    assert resolved.executor == executor_pb2.SamplingParams(
        **ids,
        **numbers,
        **floats,
        repetition_penalty=1.5,
        ignore_eos=True,
        logit_bias_ids=[6],
        logit_bias_values=[-2.5],
    )
    assert (resolved.stop, resolved.include_stop, resolved.skip_special_tokens, resolved.n) == (
        ("a", "b"),
        True,
        False,
        3,
    )


def test_bad_words_become_sequences_of_ids_each_once():
    words = [[*sequence.token_ids] for sequence in resolve(bad_words=["ab", " ab", "c"]).executor.bad_words]
    assert words == [[97, 98], [32, 97, 98], [99], [32, 99]]


def test_bad_word_without_tokens_is_refused():
    error = refused(bad_words=["a", " "])
    assert error.reason_name == "INVALID_FIELD"
    assert [field for field, _ in error.fields] == ["sampling.bad_words[1]"]


def test_bad_word_that_the_model_has_no_ids_for_is_refused():
    error = refused(bad_words=["a", "\U000e0001"])
    assert error.reason_name == "TOKEN_OUT_OF_RANGE"
    assert [field for field, _ in error.fields] == ["sampling.bad_words[1]"]


def test_absent_seed_is_drawn_anew_each_time_and_zero_is_a_seed():
    seeds = {resolve().executor.seed for _ in range(8)}
    assert len(seeds) == 8
    assert max(seeds) > 2**32  # 64 bits: all eight below would be a chance of 2**-256
    assert resolve(seed=0).executor.seed == 0


def test_temperature_that_is_almost_zero_takes_the_likeliest_token():
    assert resolve(temperature=1e-30).executor.temperature == 0
    assert resolve(temperature=1e-4).executor.temperature == pytest.approx(1e-4)


def test_absent_logprobs_stay_absent():
    executor = resolve().executor
    assert not executor.HasField("logprobs") and not executor.HasField("prompt_logprobs")
