"""The sampler picks what the definition says, alone or in a batch, and leaves the model's own log-probabilities alone."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from gpu_executor.request import Request, Sampling, Sequence
from gpu_executor.sampler import prompt_logprobs, sample
from kernels.sampling import SampleRow, reference, sample_rows


def sequence(prompt: list[int] | None = None, output: list[int] | None = None, **params) -> Sequence:
    request = Request("r", prompt or [1, 2], Sampling(max_tokens=100, **params), resumed={0: (output or [], False)})
    return request.sequences[0]


def logits_of(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_philox_gives_the_published_vectors() -> None:
    assert [hex(v) for v in reference.philox(0, np.array([0]), 0, 0)[0]] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    ones = 0xFFFFFFFF
    got = reference.philox(0xFFFFFFFFFFFFFFFF, np.array([ones]), ones, ones, ones)[0]
    assert [hex(v) for v in got] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


def test_no_draw_is_so_lucky_that_it_always_wins() -> None:
    """The largest number drawn once rounded to 1, whose noise is infinite: one token in 2^24 won against any other."""
    words = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32)
    drawn = reference.uniform(words)
    assert drawn.dtype == np.float32 and (drawn > 0).all() and (drawn < 1).all()
    noise = -np.log(-np.log(drawn))
    assert noise.max() - noise.min() <= reference.NOISE_RANGE * (1 + 1e-6)


rows = st.builds(
    SampleRow,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 600, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    sequence_index=st.integers(0, 3),
    position=st.integers(1, 5000),
)


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(rows, min_size=1, max_size=4),
    size=st.sampled_from([3, 97, 1500]),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 99),
    tied=st.booleans(),
)
def test_rows_of_a_batch_get_what_the_definition_gives_each(asked, size, spread, seed, tied) -> None:
    logits = torch.randn(len(asked), size, generator=torch.Generator().manual_seed(seed)) * spread
    if tied:
        logits = logits.bfloat16().float()  # as a model in bfloat16 gives them: many are equal
    want = [
        reference.sample(logits[i], r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.sequence_index, r.position)
        for i, r in enumerate(asked)
    ]
    assert sample_rows(logits, asked) == want


@pytest.mark.parametrize(("top_k", "top_p"), [(40, 1.0), (600, 1.0), (0, 0.05), (40, 0.5)], ids=str)
def test_of_equally_likely_tokens_the_lower_ids_are_kept(top_k: int, top_p: float) -> None:
    logits = torch.zeros(1, 1500)
    logits[0, 700:] = 1.0
    best = 40 if top_k == 40 else 600 if top_k else 1500
    highest = 700 + (best // 2 if top_p == 0.5 else best)
    for position in range(40):
        asked = SampleRow(1.0, top_k, top_p, 0.0, 7, 0, position)
        (token_id,) = sample_rows(logits, [asked])
        assert 700 <= token_id < min(highest, 1500)
        assert token_id == reference.sample(logits[0], 1.0, top_k, top_p, 0.0, 7, 0, position)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    drawn = [sample_rows(logits, [SampleRow(0.8, 0, 1.0, 0.0, 7, 0, position)])[0] for position in range(4000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, (logits[0] / 0.8).softmax(0).numpy(), atol=0.03)


def test_greedy_takes_the_likeliest() -> None:
    assert sample(logits_of(0, 3, 1), [sequence()])[0].token_id == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_no_other(bad: float) -> None:
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 1.0, 5.0]])
    first, second = sample(logits, [sequence(logprobs=1), sequence(logprobs=1)])
    assert first.token_id is None and second.token_id == 2


def test_allowed_ids_and_bias_and_bad_words() -> None:
    assert sample(logits_of(9, 3, 1), [sequence(allowed_token_ids=(1, 2))])[0].token_id == 1
    assert sample(logits_of(9, 3, 1), [sequence(logit_bias=((2, 20.0), (1, -1.0)))])[0].token_id == 2
    assert sample(logits_of(9, 3, 1), [sequence(bad_words=((0,),))])[0].token_id == 1
    assert sample(logits_of(9, 3, 1), [sequence(bad_words=((5, 0),), output=[5])])[0].token_id == 1
    assert sample(logits_of(9, 3, 1), [sequence(bad_words=((5, 0),), output=[4])])[0].token_id == 0
    assert sample(logits_of(9, 3, 1), [sequence(bad_words=((5, 0),), prompt=[5])])[0].token_id == 0, (
        "prompts are not output"
    )


def test_min_tokens_keeps_stop_tokens_away() -> None:
    params = {"stop_token_ids": frozenset({0}), "min_tokens": 2}
    assert sample(logits_of(9, 3, 1), [sequence(output=[1], **params)])[0].token_id == 1
    assert sample(logits_of(9, 3, 1), [sequence(output=[1, 1], **params)])[0].token_id == 0


def test_penalties_count_output_and_repetition_counts_the_prompt_too() -> None:
    assert sample(logits_of(3, 2.5, 0), [sequence(output=[0, 0], frequency_penalty=0.3)])[0].token_id == 1
    assert sample(logits_of(3, 2.5, 0), [sequence(output=[0, 0], presence_penalty=0.3)])[0].token_id == 0
    assert sample(logits_of(3, 2.5, 0), [sequence(prompt=[0], frequency_penalty=2.0)])[0].token_id == 0
    assert sample(logits_of(3, 2.5, 0), [sequence(prompt=[0], repetition_penalty=1.3)])[0].token_id == 1
    assert sample(logits_of(-3, -3.1, -9), [sequence(prompt=[0], repetition_penalty=1.3)])[0].token_id == 1


def test_logprobs_are_those_of_the_model_before_any_change() -> None:
    logits = logits_of(2, 1, 0, -1)
    want = logits[0].log_softmax(0)
    (token,) = sample(
        logits.clone(), [sequence(logprobs=2, allowed_token_ids=(2,), logprob_token_ids=(3,), temperature=0.5)]
    )
    assert token.token_id == 2 and token.logprobs.rank == 3
    assert token.logprobs.top_ids == [0, 1, 3]
    np.testing.assert_allclose([token.logprobs.logprob, *token.logprobs.top_logprobs], want[[2, 0, 1, 3]], rtol=1e-6)


def test_prompt_logprobs_are_those_of_the_following_tokens() -> None:
    logits = torch.randn(3, 11)
    entries = prompt_logprobs(logits, [4, 5], 1)
    np.testing.assert_allclose([e.logprob for e in entries], logits.log_softmax(-1)[[0, 1], [4, 5]], rtol=1e-6)
    assert [e.top_ids for e in entries] == [[int(row.argmax())] for row in logits[:2]]


def test_the_choice_depends_on_seed_sequence_and_position_only() -> None:
    logits = torch.randn(1, 500)
    first = sample_rows(logits, [SampleRow(1.5, 0, 1.0, 0.0, 11, 2, 40)])
    batch = torch.cat((torch.randn(2, 500), logits))
    assert (
        sample_rows(batch, [SampleRow(1.0, 0, 1.0, 0.0, 3, 0, 1)] * 2 + [SampleRow(1.5, 0, 1.0, 0.0, 11, 2, 40)])[2:]
        == first
    )
    others = {
        sample_rows(logits, [SampleRow(1.5, 0, 1.0, 0.0, s, q, p)])[0]
        for s, q, p in ((12, 2, 40), (11, 1, 40), (11, 2, 41))
    }
    assert others != set(first)
