"""The Triton selective scan equals its definition for ragged batches, and leaves the states that the definition does."""

from __future__ import annotations

import pytest
import torch

from kernels.selective_scan import reference, selective_scan
from tests.kernels.closeness import assert_close
from tests.kernels.test_causal_conv import poisoned_state, ragged
from tests.kernels.test_selective_scan import Case, make_case

# (rows in the step, length) of each sequence; few, since the interpreter takes long to scan
BATCHES = {
    "decode": [(1, 1), (1, 2), (1, 300), (0, 7), (2, 5)],
    "prefill": [(63, 63), (1, 1)],
    "mixed": [(1, 40), (0, 20), (33, 34), (0, 0)],
    "none": [(0, 3), (0, 0)],
}


def on(device: torch.device, case: Case) -> Case:
    return Case(**{name: tensor.to(device) for name, tensor in vars(case).items()})


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("shape", [(70, 3), (1, 1)], ids="C{0[0]}-N{0[1]}".format)
def test_selective_scan_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, int], batch: list[tuple[int, int]]
) -> None:
    query_start, lengths, slots, num_slots = ragged(batch)
    case = on(triton_device, make_case(shape, int(query_start[-1]), triton_dtype))
    state = poisoned_state(batch, slots, (num_slots, shape[1], shape[0]), torch.float32).to(triton_device)
    query_start, lengths, slots = (t.to(triton_device) for t in (query_start, lengths, slots))
    expected_state = state.clone()
    actual = selective_scan(*case.args, state, query_start, lengths, slots)
    expected = reference.selective_scan(*case.args, expected_state, query_start, lengths, slots)
    assert_close(actual.t(), expected.t())  # relative to each channel's largest
    assert torch.equal(state.isnan(), expected_state.isnan())
    known = ~state.isnan()
    torch.testing.assert_close(state[known], expected_state[known], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1,) * 12, (3, 9)], ids=str)
def test_chunks_change_nothing(triton_device: torch.device, sizes: tuple[int, ...]) -> None:
    case, slots = on(triton_device, make_case((9, 3), 12, torch.float32)), torch.tensor([0], device=triton_device)

    def scan(first: int, last: int, state: torch.Tensor) -> torch.Tensor:
        query_start, lengths = (t.to(triton_device) for t in ragged([(last - first, last)])[:2])
        return selective_scan(*case.rows(first, last), state, query_start, lengths, slots)

    whole_state, state = (torch.full((1, 3, 9), torch.nan, device=triton_device) for _ in range(2))
    whole, first = scan(0, 12, whole_state), 0
    for size in sizes:
        assert_close(scan(first, first + size, state), whole[first : first + size])
        first += size
    assert_close(state, whole_state)


def test_steps_of_any_size_are_exact(triton_device: torch.device) -> None:
    """softplus from where it is e^x to where it is x: its relative precision decides how long a state remembers."""
    dt = torch.cat((torch.linspace(-80, 25, 60), torch.tensor([19.9999, 20.0, 20.0001, 60.0, 200.0, -200.0])))[:, None]
    dt = dt.to(triton_device)
    one, slots = torch.ones_like(dt), torch.arange(len(dt), device=triton_device)
    starts = torch.arange(len(dt) + 1, dtype=torch.int32, device=triton_device)
    zero, state = dt.new_zeros(1), torch.full((len(dt), 1, 1), torch.nan, device=triton_device)
    selective_scan(one, dt, -one[:1], one, one, zero, one, zero, state, starts, torch.ones_like(starts[1:]), slots)
    error = (state[:, 0].double() / torch.nn.functional.softplus(dt.double()) - 1).abs()
    assert (error[dt > -10] < 1e-6).all() and (error[dt > -81] < 1e-5).all()


def test_nan_stays_in_its_sequence(triton_device: torch.device) -> None:
    batch = [(5, 5), (8, 9)]
    query_start, lengths, slots, num_slots = ragged(batch)
    case = on(triton_device, make_case((9, 2), 13, torch.float32))
    state = poisoned_state(batch, slots, (num_slots, 2, 9), torch.float32).to(triton_device)
    for t in (case.x, case.dt, case.b, case.c, case.z):
        t[0] = torch.nan
    query_start, lengths, slots = (t.to(triton_device) for t in (query_start, lengths, slots))
    y = selective_scan(*case.args, state, query_start, lengths, slots)
    assert y[:5].isnan().all() and torch.isfinite(y[5:]).all()
    assert torch.isfinite(state[slots[1:]]).all()


def test_states_that_are_not_dense_are_refused(triton_device: torch.device) -> None:
    case = on(triton_device, make_case((16, 4), 2, torch.float32))
    query_start, lengths, slots = (t.to(triton_device) for t in ragged([(2, 2)])[:3])
    with pytest.raises(ValueError, match="dense"):
        selective_scan(*case.args, torch.zeros(1, 16, 4).transpose(1, 2), query_start, lengths, slots)
