"""The Triton causal convolution equals its definition for ragged batches, and leaves the windows that the definition does."""

from __future__ import annotations

import pytest
import torch

from kernels.causal_conv import causal_conv, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_causal_conv import BATCHES, operands, poisoned_state, ragged


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("shape", [(270, 4), (5, 7), (3, 1)], ids="C{0[0]}-W{0[1]}".format)
def test_causal_conv_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, int], batch: list[tuple[int, int]]
) -> None:
    query_start, lengths, slots, num_slots = ragged(batch)
    before = poisoned_state(batch, slots, (num_slots, shape[1] - 1, shape[0]), triton_dtype).to(triton_device)
    x, weight, bias = (t.to(triton_device) for t in operands(shape, int(query_start[-1]), triton_dtype))
    query_start, lengths, slots = (t.to(triton_device) for t in (query_start, lengths, slots))
    for b in (bias, None):
        window, expected_window = before.clone(), before.clone()
        actual = causal_conv(x, weight, b, window, query_start, lengths, slots)
        expected = reference.causal_conv(x, weight, b, expected_window, query_start, lengths, slots)
        assert_close(actual.t(), expected.t())  # relative to each channel's largest
        assert torch.equal(window.nan_to_num(7e3), expected_window.nan_to_num(7e3))


@pytest.mark.parametrize("sizes", [(1,) * 12, (2, 1, 3, 5, 1), (11, 1)], ids=str)
def test_chunks_change_nothing(triton_device: torch.device, sizes: tuple[int, ...]) -> None:
    """Chunks shorter than the convolution's width too, through both kinds of launch."""
    x, weight, bias = (t.to(triton_device) for t in operands((33, 5), 12, torch.float32))
    slots = torch.tensor([0], device=triton_device)

    def conv(first: int, last: int, window: torch.Tensor) -> torch.Tensor:
        query_start, lengths = (t.to(triton_device) for t in ragged([(last - first, last)])[:2])
        return causal_conv(x[first:last], weight, bias, window, query_start, lengths, slots)

    whole_window, window = (torch.full((1, 4, 33), torch.nan, device=triton_device) for _ in range(2))
    whole, first = conv(0, 12, whole_window), 0
    for size in sizes:
        assert_close(conv(first, first + size, window), whole[first : first + size])
        first += size
    assert torch.equal(window, whole_window)


def test_rows_of_no_sequence_are_left_alone(triton_device: torch.device) -> None:
    """A captured graph pads its batch: rows behind the last sequence, and sequences of no rows with any slot."""
    x, weight, bias = (t.to(triton_device) for t in operands((20, 4), 16, torch.float32))
    window = torch.full((2, 3, 20), torch.nan, device=triton_device)
    query_start = torch.tensor([0, 5, 5, 5], dtype=torch.int32, device=triton_device)
    lengths = torch.tensor([5, 0, 0], dtype=torch.int32, device=triton_device)
    slots = torch.tensor([1, -1, -1], device=triton_device)
    y = causal_conv(x, weight, bias, window, query_start, lengths, slots)
    alone = torch.full((1, 3, 20), torch.nan, device=triton_device)
    expected = reference.causal_conv(x[:5], weight, bias, alone, query_start[:2], lengths[:1], slots[1:2] + 1)
    assert_close(y[:5], expected)
    assert torch.equal(window[1:], alone) and window[0].isnan().all()


def test_a_window_that_is_not_dense_is_refused(triton_device: torch.device) -> None:
    x, weight, bias = (t.to(triton_device) for t in operands((16, 4), 2, torch.float32))
    query_start, lengths, slots, _ = ragged([(2, 2)])
    with pytest.raises(ValueError, match="dense"):
        causal_conv(x, weight, bias, torch.zeros(1, 16, 3).transpose(1, 2), query_start, lengths, slots)
