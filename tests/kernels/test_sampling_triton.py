"""The Triton sampler picks the tokens that the definition does, and the penalties and log-probabilities are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.sampling import (
    SampleBatch,
    SampleRow,
    penalize_rows,
    reference,
    sample_rows,
    sample_tokens,
    token_logprobs,
)


def logits_of(
    num_rows: int, size: int, device: torch.device, *, spread: float = 2.0, tied: bool = False
) -> torch.Tensor:
    """With `tied` as a bfloat16 model gives them: many are equal."""
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(0)) * spread
    return (logits.bfloat16().float() if tied else logits).to(device)


def chosen_by_definition(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    return [
        reference.sample(x, r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.sequence_index, r.position)
        for x, r in zip(logits.cpu(), rows, strict=True)
    ]


FILTERS = {
    "none": (0, 1.0, 0.0),
    "k1": (1, 1.0, 0.0),
    "k40": (40, 1.0, 0.0),
    "k-of-all": (32003, 1.0, 0.0),
    "p": (0, 0.9, 0.0),
    "small-p": (0, 0.001, 0.0),
    "min-p": (0, 1.0, 0.05),
    "k-p": (40, 0.7, 0.0),
    "k-p-min-p": (600, 0.95, 0.01),
    "k-beyond-min-p": (30000, 1.0, 0.2),
}


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_tokens_are_those_of_the_definition(
    triton_device: torch.device, filters: tuple[int, float, float], tied: bool
) -> None:
    """Seeds of 64 bits; several positions, since a single draw may hit by luck."""
    rows = [
        SampleRow(temperature, *filters, seed=2**64 - 5 - i, sequence_index=i % 3, position=100 + i)
        for i, temperature in enumerate((0.7, 1.9, 0.01))
    ]
    logits = logits_of(len(rows), 32003, triton_device, tied=tied)
    assert sample_rows(logits, rows) == chosen_by_definition(logits, rows)


@pytest.mark.parametrize("size", [1, 3, 97, 4096, 4097])
def test_vocabularies_of_any_size_are_sampled(triton_device: torch.device, size: int) -> None:
    rows = [SampleRow(1.3, *filters, 11, 0, 5) for filters in FILTERS.values()]
    logits = logits_of(len(rows), size, triton_device, tied=True)
    assert sample_rows(logits, rows) == chosen_by_definition(logits, rows)


def test_of_equally_likely_tokens_the_lower_ids_are_kept(triton_device: torch.device) -> None:
    logits = torch.zeros(1, 6000, device=triton_device)
    logits[0, 4000:] = 1.0
    rows = [SampleRow(1.0, 40, 1.0, 0.0, 7, 0, i) for i in range(4)]
    rows += [SampleRow(1.0, 0, 0.001, 0.0, 7, 0, i) for i in range(4)]
    rows += [SampleRow(1.0, 40, 0.5, 0.0, 7, 0, i) for i in range(4)]
    chosen = sample_rows(logits.expand(len(rows), -1), rows)
    assert chosen == chosen_by_definition(logits.expand(len(rows), -1), rows)
    assert all(4000 <= token_id < 4040 for token_id in chosen[:4] + chosen[8:])


def test_greedy_rows_and_rows_without_numbers_lie_beside_others(triton_device: torch.device) -> None:
    logits = logits_of(6, 500, triton_device)
    logits[1, 7], logits[2, 499], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, [20, 400]] = 30.0
    rows = [SampleRow(t, 5, 0.9, 0.0, 3, 0, 1) for t in (0.0, 1.0, 1.0, 0.0, 0.0, 1.0)]
    chosen = sample_tokens(logits, SampleBatch.of(rows, triton_device))
    assert chosen.dtype == torch.int64 and chosen.device.type == triton_device.type
    assert chosen[1:4].tolist() == [-1, -1, -1]
    for i in (0, 4, 5):
        assert chosen[i : i + 1].tolist() == chosen_by_definition(logits[i : i + 1], rows[i : i + 1])
    assert chosen[4] == 20, "of two alike the lower id"


def test_the_cpu_samples_batches_alike() -> None:
    rows = [SampleRow(t, 40, 0.9, 0.02, 2**63 + 9, 1, 4) for t in (0.0, 0.5, 1.5)]
    logits = logits_of(3, 300, torch.device("cpu"))
    logits[2, 0] = torch.nan
    chosen = sample_tokens(logits, SampleBatch.of(rows, logits.device)).tolist()
    assert chosen == [*chosen_by_definition(logits[:2], rows[:2]), -1]


def test_no_rows_are_no_tokens(triton_device: torch.device) -> None:
    logits = torch.zeros(0, 10, device=triton_device)
    assert sample_tokens(logits, SampleBatch.of([], triton_device)).shape == (0,)
    assert token_logprobs(logits, logits.new_zeros(0, dtype=torch.int64), 3)[2].shape == (0, 3)


def seen_bits(prompts: list[list[int]], size: int) -> torch.Tensor:
    bits = np.zeros((len(prompts), (size + 31) // 32), np.uint32)
    for line, prompt in enumerate(prompts):
        for token_id in prompt:
            bits[line, token_id // 32] |= np.uint32(1 << token_id % 32)
    return torch.from_numpy(bits.view(np.int32))


@pytest.mark.parametrize("on_triton", [False, True], ids=["reference", "triton"])
def test_penalties_of_rows_are_those_of_each(request: pytest.FixtureRequest, on_triton: bool) -> None:
    device = request.getfixturevalue("triton_device") if on_triton else torch.device("cpu")
    size = 1200
    prompts, outputs = [[0, 31, 32, 1199], [5], []], [{0: 2, 7: 1}, {1023: 1, 1024: 9}, {}]
    counts = torch.zeros(3, size, dtype=torch.int32)
    for line, output in enumerate(outputs):
        for token_id, count in output.items():
            counts[line, token_id] = count
    slots = torch.tensor([1, 0, 2, 0], dtype=torch.int32)
    asked = torch.tensor([[0.5, 0.3, 1.2], [0.0, 0.0, 1.7], [1.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    logits = logits_of(4, size, torch.device("cpu"))
    expected = logits.clone()
    for row, slot in enumerate(slots.tolist()):
        ids = torch.tensor(list(outputs[slot]), dtype=torch.int64)
        of_ids = torch.tensor(list(outputs[slot].values()), dtype=torch.float32)
        prompt = torch.tensor(prompts[slot], dtype=torch.int64)
        reference.apply_penalties(expected[row], prompt, ids, of_ids, *asked[row].tolist())
    actual = logits.to(device)
    tables = (slots.to(device), seen_bits(prompts, size).to(device), counts.to(device))
    penalize_rows(actual, *tables, *(column.contiguous().to(device) for column in asked.t()))
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(actual[3].cpu(), logits[3])


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize(
    ("size", "num_top"), [(32003, 20), (32003, 1), (32003, 0), (4097, 300), (7, 7), (1, 1)], ids=str
)
def test_logprobs_equal_reference(triton_device: torch.device, size: int, num_top: int, tied: bool) -> None:
    logits = logits_of(2, size, triton_device, tied=tied)
    token_ids = torch.tensor([size // 2, 0], device=triton_device)
    logprobs, ranks, top_ids, top_logprobs = token_logprobs(logits, token_ids, num_top)
    expected = reference.token_logprobs(logits, token_ids, num_top)
    torch.testing.assert_close(logprobs, expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(ranks, expected[1])
    assert torch.equal(top_ids, expected[2])
    torch.testing.assert_close(top_logprobs, expected[3], rtol=1e-5, atol=1e-5)


def test_logprobs_of_tokens_that_cannot_be(triton_device: torch.device) -> None:
    """As an allowed list leaves them: fewer tokens than are asked for, then the lowest ids of the others."""
    logits = torch.full((1, 5000), -torch.inf, device=triton_device)
    logits[0, [4500, 17]] = torch.tensor([1.0, 0.0], device=triton_device)
    logprobs, ranks, top_ids, top_logprobs = token_logprobs(logits, torch.tensor([17], device=triton_device), 4)
    assert ranks.tolist() == [2] and top_ids.tolist() == [[4500, 17, 0, 1]]
    torch.testing.assert_close(logprobs, logits[:, 17] - logits[0].logsumexp(0))
    assert top_logprobs[0, 2:].tolist() == [-torch.inf] * 2


def test_wrong_operands_are_refused() -> None:
    logits = torch.zeros(2, 10)
    batch = SampleBatch.of([SampleRow(1.0, 0, 1.0, 0.0, 1, 0, 1)], logits.device)
    with pytest.raises(ValueError, match="sampling takes"):
        sample_tokens(logits, batch)
    with pytest.raises(ValueError, match="not 11"):
        token_logprobs(logits, torch.zeros(2, dtype=torch.int64), 11)
    row = torch.zeros(2)
    with pytest.raises(ValueError, match="prompt_seen"):
        penalize_rows(logits, row.int(), torch.zeros(3, 2).int(), torch.zeros(3, 10).int(), row, row, row)
