"""SamplingParams says on the wire what its user wrote, leaves out what they left out, and refuses what no field can hold."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from forebay import SamplingParams
from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.sampling_pb2 import SamplingParams as Proto

# Every field with a value that is not its default, and the field of the message that holds it.
GIVEN = {
    "n": 3, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "presence_penalty": -1.0,
    "frequency_penalty": 1.5, "repetition_penalty": 1.25, "max_tokens": 9, "min_tokens": 2, "stop": ("a", "b"),
    "stop_token_ids": (4, 5), "include_stop_str_in_output": True, "ignore_eos": True, "bad_words": ("no",),
    "allowed_token_ids": (1, 2), "logit_bias": {8: -2.5}, "seed": 2**64 - 1, "logprobs": 4, "prompt_logprobs": 0,
    "logprob_token_ids": (6,), "skip_special_tokens": False, "truncate_prompt_tokens": 11,
}  # fmt: skip
FROM_THE_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def test_every_field_has_a_place_on_the_wire_and_here() -> None:
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert names == set(GIVEN) == {field.name for field in Proto.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", GIVEN)
def test_a_field_that_is_set_travels(name: str) -> None:
    sent = getattr(SamplingParams(**{name: GIVEN[name]}).to_proto(), name)
    if name == "logit_bias":
        assert [(entry.token_id, entry.bias) for entry in sent] == [(8, -2.5)]
    else:
        assert (tuple(sent) if isinstance(GIVEN[name], tuple) else sent) == GIVEN[name]


def test_what_is_left_out_is_absent_so_that_the_models_own_defaults_hold() -> None:
    proto = SamplingParams().to_proto()
    absent = (*FROM_THE_MODEL, "max_tokens", "seed", "logprobs", "prompt_logprobs", "truncate_prompt_tokens")
    assert not [name for name in absent if proto.HasField(name)]
    assert not proto.stop and not proto.logit_bias


def test_what_is_present_by_default_is_what_absence_would_mean() -> None:
    expected = Proto(
        n=1, min_tokens=0, presence_penalty=0, frequency_penalty=0, include_stop_str_in_output=False, ignore_eos=False,
        skip_special_tokens=True,
    )  # fmt: skip
    assert SamplingParams().to_proto() == expected


@pytest.mark.parametrize("top_k", [-1, 0])
def test_both_of_vllms_ways_turn_top_k_off(top_k: int) -> None:
    proto = SamplingParams(top_k=top_k).to_proto()
    assert proto.HasField("top_k") and proto.top_k == 0


def test_a_single_text_is_a_list_of_one() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert list(SamplingParams(bad_words="word").to_proto().bad_words) == ["word"]


def test_none_is_an_empty_list() -> None:
    assert SamplingParams(stop=None, stop_token_ids=None).stop_token_ids == ()


def test_what_is_no_list_is_refused_where_one_belongs() -> None:
    with pytest.raises(InvalidRequest, match=r"^stop_token_ids is 5; it must be a list"):
        SamplingParams(stop_token_ids=5)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    proto = SamplingParams(
        max_tokens=np.int64(3), temperature=np.float32(0.5), stop_token_ids=np.array([1, 2])
    ).to_proto()
    assert (proto.max_tokens, proto.temperature, list(proto.stop_token_ids)) == (3, 0.5, [1, 2])


def test_values_that_only_the_server_can_judge_travel() -> None:
    proto = SamplingParams(temperature=math.nan, top_p=math.inf, min_p=-1.0).to_proto()
    assert math.isnan(proto.temperature) and proto.top_p == math.inf and proto.min_p == -1


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("n", -1, "must not be negative"),
        ("top_k", -2, "must not be negative"),
        ("max_tokens", 2**32, "must be at most 4294967295"),
        ("max_tokens", 1.5, "must be an integer"),
        ("max_tokens", "9", "must be an integer"),
        ("min_tokens", None, None),
        ("seed", -1, "must not be negative"),
        ("seed", 2**64, "must be at most"),
        ("logprobs", -1, "must not be negative"),
        ("temperature", "hot", "must be a number"),
        ("temperature", [1.0], "must be a number"),
        ("temperature", 10**400, "must be a number"),
        ("ignore_eos", 1, "must be true or false"),
        ("stop", ["a", 1], "must be text"),
        ("stop", ["\udcff"], "is not valid Unicode"),
        ("bad_words", [b"bytes"], "must be text"),
        ("stop_token_ids", [1, -1], "must not be negative"),
        ("logit_bias", {-1: 1.0}, "must not be negative"),
        ("logit_bias", {1: "much"}, "must be a number"),
    ],
)  # fmt: skip
def test_what_no_field_can_hold_is_refused_by_name(name: str, value: object, problem: str | None) -> None:
    params = SamplingParams(**{name: value})
    if problem is None:
        assert not params.to_proto().HasField(name)
        return
    with pytest.raises(InvalidRequest, match=f"^{name} is .*{problem}") as raised:
        params.to_proto()
    assert raised.value.reason == ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE
    assert [field for field, _ in raised.value.fields] == [f"sampling.{name}"]


def test_long_values_are_not_repeated_in_full() -> None:
    with pytest.raises(InvalidRequest) as raised:
        SamplingParams(max_tokens="9" * 10_000).to_proto()
    assert len(raised.value.message) < 200


def test_params_do_not_change_once_they_are_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().max_tokens = 3  # type: ignore[misc]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)  # type: ignore[call-arg]
