"""A prompt for an encoder-decoder reaches the executor as two: what the encoder reads and what the decoder begins with."""

from __future__ import annotations

import pytest

from forebay.block_hash import block_digests, short_hash
from forebay.client_requests import to_prompt
from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import generation_pb2 as api
from forebay.v1 import prompt_pb2, sampling_pb2
from frontend.flight import Flight
from frontend.router import prefix_hashes
from preprocess.preprocessor import Preprocessor
from tests.frontend.harness import Tier, error_of, tier

START = 7
WITH_ENCODER = Preprocessor(None, decoder_start_token_id=START)


def ids_prompt(*ids: int, decoder: list[int] | None = None) -> prompt_pb2.Prompt:
    given = {} if decoder is None else {"decoder_prompt_token_ids": decoder}
    return to_prompt({"prompt_token_ids": list(ids), **given})


@pytest.mark.parametrize(
    ("decoder", "expected"), [(None, [7]), ([], [7]), ([7], [7]), ([1], [7, 1]), ([7, 1], [7, 1]), ([1, 7], [7, 1, 7])]
)
def test_the_decoder_begins_with_the_start_token(decoder: list[int] | None, expected: list[int]) -> None:
    assert WITH_ENCODER.decoder_prompt(ids_prompt(1, 2, decoder=decoder)) == expected


def test_a_model_without_an_encoder_refuses_ids_for_a_decoder() -> None:
    preprocessor = Preprocessor(None)
    assert preprocessor.decoder_prompt(ids_prompt(1)) is None
    for decoder in ([], [1]):
        with pytest.raises(InvalidRequest, match="no encoder"):
            preprocessor.decoder_prompt(ids_prompt(1, decoder=decoder))


@pytest.mark.parametrize("key", ["prompt", "prompt_token_ids"])
def test_dictionaries_take_ids_for_the_decoder(key: str) -> None:
    prompt = to_prompt({key: "text" if key == "prompt" else [1, 2], "decoder_prompt_token_ids": [7, 3]})
    assert prompt.WhichOneof("kind") == {"prompt": "text", "prompt_token_ids": "token_ids"}[key]
    assert list(prompt.decoder_token_ids.ids) == [7, 3]
    with pytest.raises(InvalidRequest, match="decoder_prompt_token_ids"):
        to_prompt({key: "text" if key == "prompt" else [1, 2], "decoder_prompt_token_ids": [-1]})
    with pytest.raises(InvalidRequest, match="it can have prompt"):
        to_prompt({"decoder_prompt_token_ids": [1]})


def test_a_flight_brings_both_to_every_executor_that_it_comes_to() -> None:
    flight = Flight([7, 1], wire.SamplingParams(max_tokens=3), None, encoder_token_ids=[4, 5, 6])
    for handle in (1, 2):
        submit = flight.submission(handle)
        assert (list(submit.prompt_token_ids), list(submit.encoder_token_ids)) == ([7, 1], [4, 5, 6])
    assert flight.num_prompt_tokens == 5


def test_the_encoders_input_enters_the_hashes_of_the_decoders_blocks() -> None:
    prompt, sampling = list(range(8)), wire.SamplingParams(max_tokens=3)
    found = {
        tuple(prefix_hashes(Flight(prompt, sampling, None, encoder_token_ids=encoder), 4))
        for encoder in ([], [1], [1, 2])
    }
    assert len({hashes[0] for hashes in found}) == 3
    assert tuple(short_hash(digest) for digest in block_digests(prompt, 4, b"", [1, 2])) in found


async def generate(up: Tier, prompt: prompt_pb2.Prompt) -> api.GenerateResponse:
    sampling = sampling_pb2.SamplingParams(max_tokens=4)
    return await up.generation.Generate(api.GenerateRequest(prompt=prompt, sampling=sampling), timeout=10)


async def test_a_request_is_split_checked_and_counted() -> None:
    async with tier() as up:
        up.preprocessor.decoder_prompt = WITH_ENCODER.decoder_prompt
        response = await generate(up, prompt_pb2.Prompt(text="abc"))
        response_with_ids = await generate(up, ids_prompt(1, 2, decoder=[7, 9]))
        first, second = up.executor.submits
        assert (list(first.prompt_token_ids), list(first.encoder_token_ids)) == ([7], [97, 98, 99])
        assert (list(second.prompt_token_ids), list(second.encoder_token_ids)) == ([7, 9], [1, 2])
        assert response.usage.prompt_tokens == response_with_ids.usage.prompt_tokens == 4
        for prompt in (ids_prompt(1000), ids_prompt(1, decoder=[1000])):
            error = await error_of(generate(up, prompt))
            assert error.reason_name == "TOKEN_OUT_OF_RANGE"
        assert len(up.executor.submits) == 2


def test_text_needs_a_tokenizer_as_for_any_model() -> None:
    with pytest.raises(FailedPrecondition):
        WITH_ENCODER.encode(prompt_pb2.Prompt(text="abc"))
