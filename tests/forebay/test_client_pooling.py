"""Both clients against a frontend that pools: what they send, and the numbers that they unpack."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from forebay import AsyncClient, Client, PoolingParams, chat_prompt
from forebay.client_channel import _SERVICES
from forebay.client_pooling import FORMATS, score_request
from forebay.errors import InvalidRequest, NotOffered
from tests.frontend.fake_executor import pooled_at
from tests.frontend.harness import Tier, tier
from tests.frontend.pooling_tier import (
    PROMPTS,
    classifier,
    embedder,
    preprocessor_of,
    reranker,
    rewarder,
    vector_of,
    with_pairs,
)

Call = Callable[..., Any]


async def blocking(up: Tier, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(f"127.0.0.1:{up.port}", timeout=10.0) as client:
        return await asyncio.wait_for(asyncio.to_thread(getattr(client, method), *arguments, **options), 20)


async def awaited(up: Tier, method: str, *arguments: Any, **options: Any) -> Any:
    async with AsyncClient(f"127.0.0.1:{up.port}", timeout=10.0) as client:
        return await getattr(client, method)(*arguments, **options)


@pytest.fixture(params=[blocking, awaited], ids=["client", "aio"])
def call(request: pytest.FixtureRequest) -> Call:
    """Calls a method of either client."""
    return request.param


@pytest.mark.parametrize("format", FORMATS)
async def test_embeddings_are_unpacked_from_every_format(call: Call, format: str) -> None:
    inputs = [[1, 2], [3], [700, 900]]
    async with tier(embedder(embedding_size=11), preprocessor=preprocessor_of()) as up:
        response = await call(up, "embed", inputs, format=format, request_id="mine")
    found = np.array([output.embedding for output in response.outputs])
    expected = np.stack([vector_of(ids, 11) for ids in inputs])
    if format == "binary":
        assert np.array_equal(found, np.where(expected > 0, 1, -1))
    else:
        assert np.abs(found - expected).max() <= (0.5 * 48 / 127 + 1e-6 if format == "int8" else 0)
    assert (response.request_id, response.num_prompt_tokens, response.num_cached_tokens) == ("mine", 5, 6)


async def test_what_is_asked_for_reaches_the_server(call: Call) -> None:
    params = PoolingParams(dimensions=5, normalize=False, truncate_prompt_tokens=4)
    async with tier(embedder(), preprocessor=preprocessor_of(PROMPTS)) as up:
        options = {"prompt_name": "query", "priority": -2, "model": "also-tiny"}
        response = await call(up, "embed", "the quick brown fox", params, **options)
        assert len(response.outputs[0].embedding) == 5
        (submit,) = up.executor.submits
    assert (submit.pooling.dimensions, submit.pooling.normalize, submit.priority) == (5, False, -2)
    ids = with_pairs().encode("hello my the quick brown fox").ids
    assert list(submit.prompt_token_ids) == [ids[0], *ids[-3:]]


async def test_cutting_to_what_the_model_takes_needs_no_number(call: Call) -> None:
    async with tier(embedder(max_model_len=6), preprocessor=preprocessor_of()) as up:
        with pytest.raises(InvalidRequest) as caught:
            await call(up, "embed", [[1], list(range(1, 20))])
        assert caught.value.fields[0][0] == "inputs[1]" and caught.value.reason_name == "TOO_LONG"
        response = await call(up, "embed", list(range(1, 20)), PoolingParams(truncate_prompt_tokens=-1))
        assert response.outputs[0].embedding == vector_of(list(range(14, 20))).tolist()


async def test_classes_have_probabilities_and_names(call: Call) -> None:
    labels = ("bad", "good", "odd")
    async with tier(classifier(), preprocessor=preprocessor_of(labels=labels)) as up:
        response = await call(up, "classify", [[1, 2], [3]], PoolingParams(activation=False))
        assert up.executor.submits[0].pooling.HasField("activation")
    assert [output.probs for output in response.outputs] == [vector_of(ids, 3).tolist() for ids in ([1, 2], [3])]
    assert response.outputs[0].labels == list(labels)


async def test_pairs_are_scored_as_texts_or_as_token_ids(call: Call) -> None:
    async with tier(reranker(), preprocessor=preprocessor_of()) as up:
        response = await call(up, "score", "hello", ["the fox", "a dog"])
        pairs = [with_pairs().encode("hello", text) for text in ("the fox", "a dog")]
        assert [output.score for output in response.outputs] == [vector_of(pair.ids, 1)[0] for pair in pairs]
        whole = [{"prompt_token_ids": pair.ids, "token_type_ids": pair.type_ids} for pair in pairs]
        assert (await call(up, "score", whole)).outputs == response.outputs
        assert [list(s.pooling.token_type_ids) for s in up.executor.submits] == [pair.type_ids for pair in pairs] * 2


async def test_rewards_are_rows_of_numbers(call: Call) -> None:
    async with tier(rewarder(), preprocessor=preprocessor_of()) as up:
        response = await call(up, "reward", [[1, 2, 3], [4]])
    for ids, output in zip([[1, 2, 3], [4]], response.outputs, strict=True):
        assert output.data == [[pooled_at(ids, row, column) for column in range(2)] for row in range(len(ids))]


async def test_errors_have_the_type_of_their_code(call: Call) -> None:
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        with pytest.raises(NotOffered, match="serves embed, not classify"):
            await call(up, "classify", "a")
        with pytest.raises(InvalidRequest, match="format is 'int4'"):
            await call(up, "embed", "a", format="int4")
        with pytest.raises(InvalidRequest, match="cannot be sent"):
            await call(up, "embed", "a", priority=1 << 40)
        assert not up.executor.submits


def test_conversations_are_inputs_too() -> None:
    messages = [{"role": "user", "content": "a"}]
    for given in (messages, [messages], [chat_prompt(messages)]):
        assert list(score_request(given, None, None).documents) == [chat_prompt(messages)]
    assert list(score_request(["a", "b"], messages, None).queries) != []


def test_calls_that_pool_are_tried_again_as_others_are() -> None:
    assert "forebay.v1.PoolingService" in _SERVICES


def test_unpacking_loads_no_numpy() -> None:
    code = "import sys, forebay.client, forebay.client_pooling; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
