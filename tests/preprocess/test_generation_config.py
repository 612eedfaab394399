"""What a checkpoint says about sampling: its defaults, where they are in range, and the ids that end a sequence."""

from __future__ import annotations

import logging
import math

import pytest

from forebay.errors import CheckpointError
from forebay.v1 import sampling_pb2
from preprocess.generation_config import decoder_start_token_id, default_sampling, eos_token_ids
from preprocess.tokenizer import TextTokenizer
from tests.preprocess.tokenizer_zoo import tokenizer_of

BOUNDS = {
    "temperature": ([0, 0.6, 1, 100], [-0.1, 100.5]),
    "top_p": ([0.1, 0.95, 1], [0, -0.5, 1.1]),
    "top_k": ([0, 1, 20, 50.0], [-2, 0.5]),
    "min_p": ([0, 0.05, 1], [-0.1, 1.1]),
    "repetition_penalty": ([0.5, 1.1, 10], [0, -1, 10.5]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (good, _) in BOUNDS.items() for value in good])
def test_value_in_range_is_a_default(name, value):
    params = default_sampling({name: value})
    assert params.HasField(name)
    assert getattr(params, name) == pytest.approx(value)
    params.ClearField(name)
    assert params == sampling_pb2.SamplingParams()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, bad) in BOUNDS.items() for value in [*bad, math.nan, math.inf, "1", True, [1], {}]],
)
def test_value_out_of_range_is_left_out_with_a_warning(name, value, caplog):
    with caplog.at_level(logging.WARNING):
        assert default_sampling({name: value, "seed": 1}) == sampling_pb2.SamplingParams()
    assert name in caplog.text


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), *((name, None) for name in BOUNDS)])
def test_value_that_means_absent_is_left_out_without_a_word(name, value, caplog):
    with caplog.at_level(logging.WARNING):
        assert default_sampling({name: value}) == sampling_pb2.SamplingParams()
    assert not caplog.text


def test_keys_that_would_cut_or_change_answers_unasked_are_left_out():
    config = {"max_new_tokens": 20, "max_length": 20, "do_sample": False, "num_beams": 4, "length_penalty": 2.0}
    assert default_sampling(config) == sampling_pb2.SamplingParams()


def test_all_defaults_come_together():
    config = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "transformers_version": "5"}
    assert default_sampling(config) == sampling_pb2.SamplingParams(
        temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )


# Ids that end a sequence.


def tokenizer_with(**named: str) -> TextTokenizer:
    return TextTokenizer(tokenizer_of("byte_level"), named_tokens=named, chat_template=None)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 8}, (7,)),
        ({"eos_token_id": [7, 9, 7]}, {"eos_token_id": 8}, (7, 9)),
        ({}, {"eos_token_id": 8}, (8,)),
        ({"eos_token_id": None}, {"eos_token_id": [8, 3]}, (8, 3)),
        ({}, {"text_config": {"eos_token_id": 5}}, (5,)),
        ({}, {"llm_config": {"eos_token_id": 5}}, (5,)),
        ({}, {"language_config": {"eos_token_id": 5}}, (5,)),
        ({}, {"eos_token_id": 8, "text_config": {"eos_token_id": 5}}, (8,)),
        ({"eos_token_id": 0}, {"eos_token_id": 8}, (0,)),
        ({"eos_token_id": []}, {}, ()),
        ({}, {}, ()),
    ],
)  # fmt: skip
def test_first_file_that_names_ids_counts(generation, config, expected):
    assert eos_token_ids(generation, config, None) == expected


@pytest.mark.parametrize("value", ["2", -1, True, 2.0, {"a": 1}, [None, "2", -3, False]])
def test_what_is_no_id_is_left_out(value):
    assert eos_token_ids({"eos_token_id": value}, {"eos_token_id": 8}, None) == (8,)


def test_text_config_that_is_no_object_says_nothing():
    assert eos_token_ids({}, {"text_config": "llama"}, None) == ()


def test_the_tokenizers_own_end_counts_too_and_once():
    end = tokenizer_with().backend.token_to_id("</s>")
    assert eos_token_ids({"eos_token_id": 7}, {}, tokenizer_with(eos_token="</s>")) == (7, end)
    assert eos_token_ids({"eos_token_id": end}, {}, tokenizer_with(eos_token="</s>")) == (end,)
    assert eos_token_ids({}, {}, tokenizer_with(eos_token="</s>")) == (end,)


def test_end_that_the_vocabulary_does_not_have_is_none():
    assert eos_token_ids({}, {}, tokenizer_with(eos_token="<|nowhere|>")) == ()
    assert eos_token_ids({}, {}, tokenizer_with()) == ()


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {"decoder_start_token_id": 2, "bos_token_id": 0}, 2),
        ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 2}, 3),
        ({"bos_token_id": 5}, {"bos_token_id": 0}, 5),
        ({"decoder_start_token_id": None}, {"decoder_start_token_id": 0}, 0),
    ],
)
def test_the_decoder_starts_with_what_transformers_starts_it_with(generation, config, expected):
    assert decoder_start_token_id(generation, {"is_encoder_decoder": True, **config}) == expected
    assert decoder_start_token_id(generation, config) is None


def test_an_encoder_decoder_without_a_start_token_is_refused():
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        decoder_start_token_id({}, {"is_encoder_decoder": True})
