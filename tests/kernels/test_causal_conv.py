"""The causal convolution equals its definition for ragged batches, and remembers what the next step needs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.causal_conv import causal_conv, reference
from tests.kernels.closeness import assert_close

SHAPES = [(96, 4), (33, 4), (16, 2), (5, 7), (1, 4), (48, 1)]  # channels, taps
IDS = ["C{}-W{}".format(*shape) for shape in SHAPES]
# (rows in the step, length) of each sequence
BATCHES = {
    "decode": [(1, 1), (1, 2), (1, 300), (1, 5)],
    "prefill": [(63, 63), (1, 1), (2, 2), (130, 130)],
    "mixed": [(1, 40), (0, 20), (33, 33), (2, 256), (1, 1), (16, 47), (0, 0)],
    "none": [(0, 3), (0, 0)],
}


def ragged(batch: list[tuple[int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """query_start, seq_lens and shuffled slots of a batch, and how many slots there are: more than are used."""
    counts, lengths = (torch.tensor(column, dtype=torch.int32) for column in zip(*batch))
    query_start = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    slots = torch.randperm(len(batch) + 3, generator=torch.Generator().manual_seed(seed))[: len(batch)]
    return query_start, lengths, slots, len(batch) + 3


def poisoned_state(batch: list[tuple[int, int]], slots: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype):
    """Random memory of the sequences that go on; NaN for those that begin, and where nobody's is."""
    state = torch.full(shape, torch.nan, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    for slot, (count, length) in zip(slots.tolist(), batch):
        if count < length:
            state[slot] = torch.randn(shape[1:], generator=generator).to(dtype)
    return state


def operands(shape: tuple[int, int], num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    num_channels, num_taps = shape
    generator = torch.Generator().manual_seed(num_tokens)
    wide = torch.randn(num_tokens, 2 * num_channels, generator=generator).to(dtype)
    weight, bias = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((num_channels, num_taps), (num_channels,))
    )
    return wide[:, :num_channels], weight, bias  # a slice of a fused projection


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_causal_conv_equals_reference(
    path: str, dtype: torch.dtype, shape: tuple[int, int], batch: list[tuple[int, int]]
) -> None:
    query_start, lengths, slots, num_slots = ragged(batch)
    x, weight, bias = operands(shape, int(query_start[-1]), dtype)
    before = poisoned_state(batch, slots, (num_slots, shape[1] - 1, shape[0]), dtype)
    for b in (bias, None):
        window, expected_window, x_before = before.clone(), before.clone(), x.clone()
        actual = causal_conv(x, weight, b, window, query_start, lengths, slots)
        expected = reference.causal_conv(x, weight, b, expected_window, query_start, lengths, slots)
        assert_close(actual.t(), expected.t())  # relative to each channel's largest
        assert torch.equal(window.nan_to_num(7e3), expected_window.nan_to_num(7e3))
        assert torch.equal(x, x_before)


def test_causal_conv_equals_torch(path: str) -> None:
    x, weight, bias = operands((24, 4), 30, torch.float32)
    window = torch.full((1, 3, 24), torch.nan)
    actual = causal_conv(x, weight, bias, window, *ragged([(30, 30)])[:2], torch.tensor([0]))
    expected = F.silu(F.conv1d(x.t()[None], weight[:, None], bias, padding=3, groups=24)[0, :, :30])
    assert_close(actual, expected.t())
    assert torch.equal(window[0], x[-3:])


@pytest.mark.parametrize("sizes", [(30,), (1,) * 30, (2, 1, 3, 7, 1, 16), (29, 1)], ids=str)
def test_chunks_change_nothing(path: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    """Chunks shorter than the convolution's width too."""
    x, weight, bias = operands((33, 5), 30, dtype)
    slots = torch.tensor([0])
    whole = causal_conv(x, weight, bias, torch.full((1, 4, 33), torch.nan, dtype=dtype), *ragged([(30, 30)])[:2], slots)
    window, first = torch.full((1, 4, 33), torch.nan, dtype=dtype), 0
    for size in sizes:
        query_start, lengths, _, _ = ragged([(size, first + size)])
        part = causal_conv(x[first : first + size], weight, bias, window, query_start, lengths, slots)
        assert_close(part, whole[first : first + size])
        assert path == "torch" or torch.equal(part, whole[first : first + size])
        first += size


def test_nan_stays_in_its_sequence(path: str, dtype: torch.dtype) -> None:
    batch = [(5, 5), (3, 9), (4, 4)]
    query_start, lengths, slots, num_slots = ragged(batch)
    x, weight, bias = operands((20, 4), 12, dtype)
    window = poisoned_state(batch, slots, (num_slots, 3, 20), dtype)
    x[0] = torch.nan
    y = causal_conv(x, weight, bias, window, query_start, lengths, slots)
    assert y[:4].isnan().all() and torch.isfinite(y[4:]).all()  # four taps see the first row
    assert torch.isfinite(window[slots[1:]]).all()


def test_slot_out_of_range_is_refused(path: str) -> None:
    x, weight, bias = operands((16, 4), 1, torch.float32)
    for slot in (2, 10**6):
        with pytest.raises(IndexError):
            causal_conv(x, weight, bias, torch.zeros(2, 3, 16), *ragged([(1, 1)])[:2], torch.tensor([slot]))


def test_wrong_shapes_are_refused() -> None:
    x, weight, bias = operands((16, 4), 2, torch.float32)
    query_start, lengths, slots, _ = ragged([(2, 2)])
    for wrong in (
        (x, weight, bias, torch.zeros(1, 4, 16)),
        (x[:, 1:], weight, bias, torch.zeros(1, 3, 16)),
        (x, weight, bias[1:], torch.zeros(1, 3, 16)),
        (x[0], weight, bias, torch.zeros(1, 3, 16)),
    ):
        with pytest.raises(ValueError):
            causal_conv(*wrong, query_start, lengths, slots)
    with pytest.raises(ValueError, match="query_start"):
        causal_conv(x, weight, bias, torch.zeros(1, 3, 16), query_start[:1], lengths, slots)
