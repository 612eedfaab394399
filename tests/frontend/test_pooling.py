"""PoolingService: many inputs of one call become flights, their results come back in order, and one failure ends them all."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import pooling_pb2 as api
from forebay.v1 import prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.generation_pb2 import GenerateRequest
from forebay.v1.model_pb2 import ListModelsRequest
from frontend.admission import Ledger
from tests.frontend.fake_executor import WAIT_S, pooled_at
from tests.frontend.harness import Tier, error_of, tier, until
from tests.frontend.pooling_tier import (
    PROMPTS,
    SIZE,
    classifier,
    embedder,
    ids_prompt,
    preprocessor_of,
    reranker,
    rewarder,
    text_prompt,
    vector_of,
    with_pairs,
)

F32, F16, INT8, BINARY = (
    api.EMBEDDING_FORMAT_FLOAT32, api.EMBEDDING_FORMAT_FLOAT16, api.EMBEDDING_FORMAT_INT8, api.EMBEDDING_FORMAT_BINARY,
)  # fmt: skip


async def embed(up: Tier, *prompts: prompt_pb2.Prompt, **fields: Any) -> api.EmbedResponse:
    return await up.pooling.Embed(api.EmbedRequest(inputs=prompts, **fields), timeout=20)


def vectors(response: api.EmbedResponse) -> np.ndarray:
    return np.frombuffer(response.embeddings, "<f4").reshape(-1, response.dimensions)


# Order and counts


async def test_1024_inputs_come_back_in_order_however_executors_finish_them() -> None:
    executors = [embedder(max_num_seqs=8), embedder(max_num_seqs=8)]
    inputs = [[number % 1000, number // 7] for number in range(1024)]
    async with tier(*executors, preprocessor=preprocessor_of()) as up:
        response = await embed(up, *(ids_prompt(*ids) for ids in inputs), request_id="many")
        assert all(executor.submits for executor in executors)
        assert up.ledger == Ledger(arrived=1, done=1)
    assert (response.request_id, response.dimensions, response.format) == ("many", SIZE, F32)
    assert np.array_equal(vectors(response), np.stack([vector_of(ids) for ids in inputs]))
    assert (response.usage.prompt_tokens, response.usage.cached_prompt_tokens) == (2048, 2048)
    assert response.usage.completion_tokens == 0


async def test_a_call_has_no_more_inputs_under_way_than_executors_run_at_once() -> None:
    executor = embedder(auto=False, max_num_seqs=3)
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        call = asyncio.ensure_future(embed(up, *(ids_prompt(number) for number in range(1, 8))))
        for num_submitted in (3, 6, 7):
            await executor.saw(lambda num=num_submitted: len(executor.submits) == num)
            assert executor.num_aboard <= 3
            await executor.step()
        response = await call
    assert np.array_equal(vectors(response), np.stack([vector_of([number]) for number in range(1, 8)]))


async def test_another_call_gets_through_while_a_long_one_runs() -> None:
    executor = embedder(auto=False, max_num_seqs=2)
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        long = asyncio.ensure_future(embed(up, *(ids_prompt(number) for number in range(1, 101))))
        await executor.saw(lambda: executor.num_aboard == 2)
        short = asyncio.ensure_future(embed(up, ids_prompt(500)))
        await executor.saw(lambda: executor.num_aboard == 3)
        await executor.step()
        assert np.array_equal(vectors(await short), [vector_of([500])])
        assert not long.done()
        executor.auto = True
        assert len(vectors(await long)) == 100


# What reaches the executor, and formats


async def test_dimensions_and_normalize_reach_the_executor_only_if_they_are_asked_for() -> None:
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        assert (await embed(up, ids_prompt(1))).dimensions == SIZE
        response = await embed(up, ids_prompt(1), dimensions=5, normalize=False, priority=-3)
        plain, asked = up.executor.submits
    assert response.dimensions == 5 and np.array_equal(vectors(response), [vector_of([1], 5)])
    assert not plain.HasField("sampling") and not plain.pooling.HasField("dimensions")
    assert not plain.pooling.HasField("normalize") and not plain.pooling.HasField("activation")
    assert (asked.pooling.dimensions, asked.pooling.normalize, asked.priority) == (5, False, -3)
    assert asked.HasField("timeout_ms")


@pytest.mark.parametrize("format", [F16, INT8, BINARY])
async def test_vectors_are_packed_in_the_format_that_is_asked_for(format: int) -> None:
    inputs = [[3], [4, 5], [900, 901]]
    async with tier(embedder(embedding_size=11), preprocessor=preprocessor_of()) as up:
        response = await embed(up, *(ids_prompt(*ids) for ids in inputs), format=format)
    expected = np.stack([vector_of(ids, 11) for ids in inputs])
    assert (response.format, response.dimensions) == (format, 11)
    if format == F16:
        assert np.array_equal(np.frombuffer(response.embeddings, "<f2").reshape(3, 11), expected)
    elif format == INT8:
        found = np.frombuffer(response.embeddings, "i1").reshape(3, 11) * np.array(response.scales)[:, None]
        assert np.abs(found - expected).max() <= np.abs(expected).max() / 127 / 2 + 1e-6
        assert np.abs(np.frombuffer(response.embeddings, "i1")).max() == 127
    else:
        bits = np.unpackbits(np.frombuffer(response.embeddings, "u1").reshape(3, 2), axis=1)
        assert np.array_equal(bits[:, :11], expected > 0) and not bits[:, 11:].any()
    assert bool(response.scales) == (format == INT8)


async def test_texts_are_tokenized_with_special_tokens_and_named_prompts() -> None:
    tokenizer = with_pairs()
    async with tier(embedder(), preprocessor=preprocessor_of(PROMPTS)) as up:
        await embed(up, text_prompt("the quick fox"))
        await embed(up, text_prompt("the quick fox"), prompt_name="query")
        await embed(up, text_prompt("the quick fox [SEP]"))
        plain, named, with_name = (list(submit.prompt_token_ids) for submit in up.executor.submits)
        error = await error_of(embed(up, text_prompt("x"), prompt_name="passage"))
        assert "it has nothing, query" in error.message
    assert plain == tokenizer.encode("the quick fox").ids
    assert named == tokenizer.encode("hello my the quick fox").ids
    assert with_name.count(tokenizer.token_to_id("[SEP]")) == 1


# Refusals


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (ids_prompt(), ErrorReason.ERROR_REASON_EMPTY_PROMPT, "no tokens"),
        (text_prompt(""), ErrorReason.ERROR_REASON_EMPTY_PROMPT, "empty"),
        (ids_prompt(1000), ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE, "1000"),
        (ids_prompt(*[1] * 9), ErrorReason.ERROR_REASON_TOO_LONG, "9 tokens; the model takes 8"),
        (ids_prompt(1, 2, types=(0,)), ErrorReason.ERROR_REASON_INVALID_FIELD, "1 token types for 2 tokens"),
        (ids_prompt(1, 2, types=(0, 2)), ErrorReason.ERROR_REASON_INVALID_FIELD, "token type 2"),
    ],
)
async def test_a_refusal_names_the_input_and_ends_the_others(bad: prompt_pb2.Prompt, reason: int, message: str) -> None:
    executor = embedder(auto=False, max_model_len=8)
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        error = await error_of(embed(up, ids_prompt(1), ids_prompt(2), ids_prompt(3), bad, ids_prompt(4)))
        assert error.code == "INVALID_ARGUMENT" and error.reason == reason and message in error.message
        assert [field for field, _ in error.fields] == ["inputs[3]"]
        await until(lambda: not up.server.dispatcher.num_flights and not executor.num_aboard)
        assert (up.ledger.failed, up.ledger.in_flight) == (1, 0)


async def test_a_refusal_by_the_executor_names_the_input_too() -> None:
    executor = embedder()

    def refuse(submit: wire.Submit) -> None:
        if list(submit.prompt_token_ids) == [7]:
            executor.rejection = wire.Rejected(
                reason=ErrorReason.ERROR_REASON_INVALID_FIELD, code=3, message="not this one"
            )

    executor.on_submit = refuse
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        error = await error_of(embed(up, ids_prompt(1), ids_prompt(7)))
        assert error.fields == (("inputs[1]", "not this one"),) and error.message == "inputs[1]: not this one"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [ids_prompt(1)] * 2049}, "inputs"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": SIZE + 1}, "dimensions"),
        ({"format": 9}, "format"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"priority": 1001}, "priority"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_runs(fields: dict[str, Any], field: str) -> None:
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        request = api.EmbedRequest(**{"inputs": [ids_prompt(1)], **fields})
        error = await error_of(up.pooling.Embed(request, timeout=WAIT_S))
        assert error.code == "INVALID_ARGUMENT" and error.fields[0][0] == field
        assert not up.executor.submits


async def test_an_answer_that_would_be_too_large_is_refused_before_the_work() -> None:
    async with tier(embedder(embedding_size=4000), preprocessor=preprocessor_of(), max_message_bytes=100_000) as up:
        inputs = [ids_prompt(number) for number in range(1, 6)]
        error = await error_of(embed(up, *inputs))
        assert error.code == "INVALID_ARGUMENT" and "80,000 bytes" in error.message
        assert not up.executor.submits
        assert len((await embed(up, *inputs, format=INT8)).embeddings) == 20_000


async def test_tasks_that_the_model_does_not_do_are_not_offered() -> None:
    request = {"inputs": [ids_prompt(1)]}
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        calls = {
            "classify": up.pooling.Classify(api.ClassifyRequest(**request), timeout=WAIT_S),
            "reward": up.pooling.Reward(api.RewardRequest(**request), timeout=WAIT_S),
            "generate": up.generation.Generate(GenerateRequest(prompt=ids_prompt(1)), timeout=WAIT_S),
        }
        for task, call in calls.items():
            error = await error_of(call)
            assert (error.code, error.reason_name) == ("UNIMPLEMENTED", "NOT_OFFERED")
            assert error.message == f"this model serves embed, not {task}"
        assert not up.executor.submits
    async with tier(classifier(), preprocessor=preprocessor_of()) as up:
        score = api.ScoreRequest(queries=[text_prompt("a")], documents=[text_prompt("b")])
        for call in (embed(up, ids_prompt(1)), up.pooling.Score(score, timeout=WAIT_S)):
            error = await error_of(call)
            assert error.reason_name == "NOT_OFFERED" and "serves classify, not" in error.message
    async with tier() as up:
        error = await error_of(embed(up, ids_prompt(1)))
        assert error.message == "this model serves generate, not embed"


# Classes, scores, rewards


async def test_classes_come_with_their_names() -> None:
    inputs = [[1, 2], [3]]
    labels = ("bad", "good", "odd")
    async with tier(classifier(), preprocessor=preprocessor_of(labels=labels)) as up:
        request = api.ClassifyRequest(inputs=[ids_prompt(*ids) for ids in inputs], activation=False)
        response = await up.pooling.Classify(request, timeout=WAIT_S)
        model = (await up.models.ListModels(ListModelsRequest())).models[0]
        assert up.executor.submits[0].pooling.HasField("activation")
    found = np.frombuffer(response.probabilities, "<f4").reshape(2, response.num_classes)
    assert np.array_equal(found, [vector_of(ids, 3) for ids in inputs])
    assert tuple(response.labels) == tuple(model.labels) == labels
    assert response.usage.prompt_tokens == 3


async def test_pairs_are_read_together_in_the_tokenizers_template() -> None:
    tokenizer = with_pairs()
    async with tier(reranker(), preprocessor=preprocessor_of()) as up:
        request = api.ScoreRequest(
            queries=[text_prompt("hello my name")], documents=[text_prompt("the quick fox"), text_prompt("a dog [SEP]")]
        )
        response = await up.pooling.Score(request, timeout=WAIT_S)
        first, second = sorted(
            up.executor.submits, key=lambda submit: len(submit.prompt_token_ids)
        )  # sent in any order
    expected = tokenizer.encode("hello my name", "the quick fox")
    assert (list(first.prompt_token_ids), list(first.pooling.token_type_ids)) == (expected.ids, expected.type_ids)
    assert 1 in expected.type_ids
    assert list(second.prompt_token_ids).count(tokenizer.token_to_id("[SEP]")) == 2
    assert response.scores == [vector_of(list(submit.prompt_token_ids), 1)[0] for submit in (first, second)]


async def test_models_with_one_segment_are_told_of_none() -> None:
    async with tier(reranker(num_token_types=1), preprocessor=preprocessor_of()) as up:
        request = api.ScoreRequest(queries=[text_prompt("hello")], documents=[text_prompt("the fox")])
        await up.pooling.Score(request, timeout=WAIT_S)
        assert not up.executor.submits[0].pooling.token_type_ids


async def test_a_long_pair_loses_the_documents_end_and_a_long_query_is_refused() -> None:
    tokenizer = with_pairs()
    async with tier(reranker(), preprocessor=preprocessor_of()) as up:
        query, document = "hello my name", "the quick brown fox jumps over the lazy dog"
        size = len(tokenizer.encode(query, document).ids)
        request = api.ScoreRequest(
            queries=[text_prompt(query)], documents=[text_prompt(document)], truncate_prompt_tokens=size - 4
        )
        await up.pooling.Score(request, timeout=WAIT_S)
        tokenizer.enable_truncation(size - 4, strategy="only_second")
        assert list(up.executor.submits[0].prompt_token_ids) == tokenizer.encode(query, document).ids
        request.truncate_prompt_tokens = 4
        error = await error_of(up.pooling.Score(request, timeout=WAIT_S))
        assert error.reason_name == "TOO_LONG" and error.fields[0][0] == "documents[0]"


async def test_whole_pairs_are_taken_as_token_ids_with_their_segments() -> None:
    async with tier(reranker(), preprocessor=preprocessor_of()) as up:
        pair = ids_prompt(5, 6, 7, types=(0, 0, 1))
        response = await up.pooling.Score(api.ScoreRequest(documents=[pair, ids_prompt(8)]), timeout=WAIT_S)
        assert list(up.executor.submits[0].pooling.token_type_ids) == [0, 0, 1]
        error = await error_of(up.pooling.Score(api.ScoreRequest(documents=[pair, text_prompt("x")]), timeout=WAIT_S))
        assert error.fields[0][0] == "documents[1]"
        mixed = api.ScoreRequest(queries=[text_prompt("x")], documents=[pair])
        assert (await error_of(up.pooling.Score(mixed, timeout=WAIT_S))).fields[0][0] == "documents[0]"
    assert response.scores == [vector_of([5, 6, 7], 1)[0], vector_of([8], 1)[0]]


@pytest.mark.parametrize("num_queries", [1, 3])
async def test_a_model_that_embeds_scores_by_the_cosine(num_queries: int) -> None:
    queries, documents = [[1], [2, 3], [4]][:num_queries], [[5], [6], [7, 8]]
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        request = api.ScoreRequest(
            queries=[ids_prompt(*ids) for ids in queries], documents=[ids_prompt(*ids) for ids in documents]
        )
        response = await up.pooling.Score(request, timeout=WAIT_S)
        assert len(up.executor.submits) == num_queries + 3
        del request.queries[:]
        assert (await error_of(up.pooling.Score(request, timeout=WAIT_S))).fields[0][0] == "queries"
    pairs = zip(queries * 3 if num_queries == 1 else queries, documents, strict=True)
    expected = [
        float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)) for a, b in ((vector_of(q), vector_of(d)) for q, d in pairs)
    ]
    assert response.scores == pytest.approx(expected, rel=1e-5)
    assert response.usage.prompt_tokens == sum(map(len, queries + documents))


async def test_rewards_come_as_tables_with_a_row_per_token() -> None:
    inputs = [[1, 2, 3, 4, 5], [6]]
    async with tier(rewarder(), preprocessor=preprocessor_of()) as up:
        response = await up.pooling.Reward(
            api.RewardRequest(inputs=[ids_prompt(*ids) for ids in inputs]), timeout=WAIT_S
        )
        assert not up.executor.submits[0].pooling.HasField("activation")
    for ids, table in zip(inputs, response.tables, strict=True):
        found = np.frombuffer(table.values, "<f4").reshape(table.num_rows, table.num_columns)
        assert np.array_equal(found, [[pooled_at(ids, row, column) for column in range(2)] for row in range(len(ids))])


# Ends


async def test_a_client_that_leaves_ends_all_of_its_inputs() -> None:
    executor = embedder(auto=False, max_num_seqs=4)
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        request = api.EmbedRequest(inputs=[ids_prompt(number) for number in range(1, 10)])
        call = up.pooling.Embed(request)
        await executor.saw(lambda: executor.num_aboard == 4)
        call.cancel()
        await executor.saw(lambda: len(executor.aborts) == 4 and not executor.num_aboard)
        await until(lambda: up.ledger == Ledger(arrived=1, cancelled=1))
        assert len(executor.submits) == 4 and not up.server.dispatcher.num_flights


async def test_the_deadline_ends_all_inputs() -> None:
    executor = embedder(auto=False)
    async with tier(executor, preprocessor=preprocessor_of(), default_timeout_s=0.2) as up:
        error = await error_of(
            up.pooling.Embed(api.EmbedRequest(inputs=[ids_prompt(1), ids_prompt(2)]), timeout=WAIT_S)
        )
        assert error.code == "DEADLINE_EXCEEDED"
        await executor.saw(lambda: len(executor.aborts) == 2)
        assert up.ledger == Ledger(arrived=1, expired=1)


async def test_draining_ends_calls_that_pool() -> None:
    executor = embedder(auto=False)
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        call = asyncio.ensure_future(error_of(embed(up, ids_prompt(1))))
        await executor.saw(lambda: executor.num_aboard == 1)
        await up.server.drain(0.01)
        error = await call
        assert (error.code, error.reason_name) == ("UNAVAILABLE", "DRAINING")
        assert (await error_of(embed(up, ids_prompt(1)))).reason_name == "DRAINING"


async def test_inputs_of_a_lost_executor_are_pooled_from_the_beginning_on_another_one() -> None:
    first, second = rewarder(auto=False), rewarder(auto=False)
    inputs = [[number, number + 1, number + 2] for number in range(1, 5)]
    async with tier(first, second, preprocessor=preprocessor_of()) as up:
        request = api.RewardRequest(inputs=[ids_prompt(*ids) for ids in inputs])
        call = asyncio.ensure_future(up.pooling.Reward(request, timeout=20))
        await until(lambda: first.num_aboard + second.num_aboard == 4)
        lost, other = (first, second) if first.num_aboard else (second, first)
        await lost.step()  # the first two rows of three
        await lost.kill()
        other.auto = True
        response = await call
        assert other.num_aboard == 0 and max(submit.epoch for submit in other.submits) == 2
    for ids, table in zip(inputs, response.tables, strict=True):
        found = np.frombuffer(table.values, "<f4").reshape(3, 2)
        assert np.array_equal(found, [[pooled_at(ids, row, column) for column in range(2)] for row in range(3)])


async def test_a_call_that_comes_while_no_executor_is_there_goes_on_as_wide_as_before() -> None:
    executor = embedder(auto=False, max_num_seqs=4)
    async with tier(executor, preprocessor=preprocessor_of(), executor_wait_s=20) as up:
        await executor.kill()
        await up.until_ready(0)
        call = asyncio.ensure_future(embed(up, *(ids_prompt(number) for number in range(1, 7))))
        await until(lambda: up.server.dispatcher.num_flights == 4)
        executor.auto = True
        await executor.start()
        assert np.array_equal(vectors(await call), np.stack([vector_of([number]) for number in range(1, 7)]))


def _skip_a_row(frame: wire.StepFrame) -> None:
    frame.pooled[0].first_row = 1


def _lose_a_byte(frame: wire.StepFrame) -> None:
    frame.pooled[0].values = frame.pooled[0].values[:-1]


def _send_a_token(frame: wire.StepFrame) -> None:
    pooled = frame.pooled.pop()
    frame.handles.append(pooled.handle)
    frame.epochs.append(pooled.epoch)
    frame.sequence_indexes.append(0)
    frame.token_indexes.append(0)
    frame.token_ids.append(5)


@pytest.mark.parametrize("change", [_skip_a_row, _lose_a_byte, _send_a_token])
async def test_rows_that_do_not_fit_are_asked_of_another_executor(change: Any) -> None:
    executors = [embedder(auto=False), embedder(auto=False)]

    def tamper(frame: wire.StepFrame) -> list[wire.StepFrame]:
        change(frame)
        return [frame]

    async with tier(*executors, preprocessor=preprocessor_of()) as up:
        call = asyncio.ensure_future(embed(up, ids_prompt(3, 4)))
        await until(lambda: any(executor.num_aboard for executor in executors))
        wrong, right = sorted(executors, key=lambda executor: executor.num_aboard, reverse=True)
        wrong.tamper, right.auto = tamper, True
        await wrong.step()
        assert np.array_equal(vectors(await call), [vector_of([3, 4])])
        assert right.submits[0].epoch == 2


async def test_rows_of_an_earlier_epoch_or_an_unknown_request_are_dropped() -> None:
    executor = embedder(auto=False)

    def tamper(frame: wire.StepFrame) -> list[wire.StepFrame]:
        late = wire.StepFrame()
        late.CopyFrom(frame)
        late.pooled[0].epoch, late.pooled[0].values = 7, b"\0" * len(late.pooled[0].values)
        unknown = wire.StepFrame()
        unknown.CopyFrom(late)
        unknown.pooled[0].handle = 99
        return [late, unknown, frame, frame]

    executor.tamper = tamper
    async with tier(executor, preprocessor=preprocessor_of()) as up:
        call = asyncio.ensure_future(embed(up, ids_prompt(3)))
        await executor.saw(lambda: executor.num_aboard == 1)
        await executor.step()
        assert np.array_equal(vectors(await call), [vector_of([3])])


async def test_malformed_bytes_are_an_invalid_argument() -> None:
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        call = up.channel.unary_unary("/forebay.v1.PoolingService/Embed")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
