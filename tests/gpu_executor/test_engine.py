"""The engine gives each request its own tokens, refuses what it must, and forgets everything that has ended."""

from __future__ import annotations

import gc
import weakref

import pytest

from forebay.errors import Aborted, DeadlineExceeded, ForebayError
from gpu_executor.request import FinishReason, Request, Sampling
from tests.gpu_executor.fake_runner import NAN_TOKEN, VOCAB_SIZE, continuation, make_engine


def run_all(engine, limit: int = 500) -> dict:
    """Steps until nothing is left; the tokens by (request key, sequence index)."""
    tokens: dict = {}
    for _ in range(limit):
        if not engine.has_work:
            return tokens
        for output in engine.step().tokens:
            tokens.setdefault((output.sequence.request.key, output.sequence.index), []).append(output.token_id)
    raise AssertionError("the engine makes no progress")


def test_requests_of_all_lengths_get_their_own_tokens_in_one_batch() -> None:
    engine = make_engine()
    prompts = {key: list(range(key % 60 + 1)) for key in range(40)}
    for key, prompt in prompts.items():
        engine.add(Request(key, prompt, Sampling(max_tokens=key % 9 + 1)))
    tokens = run_all(engine)
    assert tokens == {(key, 0): continuation(prompt, key % 9 + 1) for key, prompt in prompts.items()}
    assert engine.scheduler.pool.num_used == 0 and not engine.requests


def test_stop_token_ends_a_sequence_and_is_part_of_it() -> None:
    engine = make_engine()
    want = continuation([5, 6], 10)
    stop = want[3]
    engine.add(Request("r", [5, 6], Sampling(max_tokens=10, stop_token_ids=frozenset({stop}))))
    outputs = []
    while engine.has_work:
        outputs += engine.step().tokens
    assert [output.token_id for output in outputs] == want[: want.index(stop) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP and outputs[-1].ends_request
    assert all(output.finish_reason is None for output in outputs[:-1])


def test_resumed_sequences_go_on_where_they_were() -> None:
    want = continuation([1, 2, 3], 8)
    engine = make_engine()
    engine.add(Request("r", [1, 2, 3], Sampling(max_tokens=8, n=3), resumed={0: (want[:5], False), 2: (want, True)}))
    outputs = []
    while engine.has_work:
        outputs += engine.step().tokens
    first = [(o.token_index, o.token_id) for o in outputs if o.sequence.index == 0]
    assert first == list(enumerate(want))[5:]
    assert [o.token_id for o in outputs if o.sequence.index == 1] == want
    assert not [o for o in outputs if o.sequence.index == 2]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("x", [], Sampling(max_tokens=1)), "EMPTY_PROMPT"),
        (Request("x", [VOCAB_SIZE], Sampling(max_tokens=1)), "TOKEN_OUT_OF_RANGE"),
        (Request("x", [1] * 100, Sampling(max_tokens=29)), "TOO_LONG"),
        (Request("taken", [1], Sampling(max_tokens=1)), "DUPLICATE_REQUEST"),
        (Request("x", [1], Sampling(max_tokens=3), resumed={0: ([1, 2, 3], False)}), "INVALID_FIELD"),
        (Request("x", [1], Sampling(max_tokens=1, n=100)), "QUEUE_FULL"),
        (Request("x", [1], Sampling(max_tokens=1), encoder_token_ids=[1]), "INVALID_FIELD"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_is_refused_and_nothing_of_it_is_kept(request_: Request, reason: str) -> None:
    engine = make_engine()
    engine.add(Request("taken", [1], Sampling(max_tokens=1)))
    with pytest.raises(ForebayError) as caught:
        engine.add(request_)
    assert caught.value.reason_name == reason
    assert list(engine.requests) == ["taken"] and len(engine.scheduler.waiting) == 1


def test_a_request_larger_than_the_whole_cache_is_refused_and_not_preempted_for_ever() -> None:
    engine = make_engine(num_blocks=4)
    with pytest.raises(ForebayError, match="KV cache holds 16"):
        engine.add(Request("x", [1] * 10, Sampling(max_tokens=7)))


def test_values_that_are_not_numbers_end_their_request_alone() -> None:
    engine = make_engine()
    engine.add(Request("bad", [1, NAN_TOKEN], Sampling(max_tokens=3)))
    engine.add(Request("good", [1, 2], Sampling(max_tokens=3)))
    output = engine.step()
    ((failed, error),) = output.failed
    assert failed.key == "bad" and isinstance(error, Aborted) and error.reason_name == "NUMERIC"
    good = [token.token_id for token in output.tokens]
    while engine.has_work:
        good += [token.token_id for token in engine.step().tokens]
    assert good == continuation([1, 2], 3)
    engine.scheduler.check()


def test_a_passed_deadline_ends_waiting_and_running_requests_and_frees_their_blocks() -> None:
    now = 0.0
    engine = make_engine(clock=lambda: now)
    engine.add(Request("running", [1] * 8, Sampling(max_tokens=50), deadline=10.0))
    engine.step()
    engine.add(Request("waiting", [2] * 8, Sampling(max_tokens=50), deadline=9.0))
    engine.add(Request("free", [3], Sampling(max_tokens=2)))
    now = 11.0
    output = engine.step()
    assert {request.key for request, _ in output.failed} == {"running", "waiting"}
    assert all(isinstance(error, DeadlineExceeded) for _, error in output.failed)
    assert {token.sequence.request.key for token in output.tokens} == {"free"}
    run_all(engine)
    assert engine.scheduler.pool.num_used == 0
    engine.scheduler.check()


def test_abort_of_one_sequence_leaves_its_siblings() -> None:
    engine = make_engine()
    engine.add(Request("r", [1, 2], Sampling(max_tokens=4, n=2)))
    engine.step()
    assert engine.abort("r", 0) and not engine.abort("r", 0) and not engine.abort("unknown")
    tokens = run_all(engine)
    assert ("r", 1) in tokens and ("r", 0) not in tokens
    assert engine.scheduler.ledger.num_aborted == 1


def test_requests_that_ended_before_their_deadline_are_not_kept_until_it() -> None:
    class Key:
        """A request's key, whose life is its request's."""

    engine = make_engine()
    alive = []
    for _ in range(500):
        key = Key()
        alive.append(weakref.ref(key))
        engine.add(Request(key, [1, 2], Sampling(max_tokens=1), deadline=1e12))
        del key
        while engine.has_work:
            engine.step()
    gc.collect()
    assert sum(reference() is not None for reference in alive) < 100
