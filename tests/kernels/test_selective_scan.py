"""The selective scan equals its definition for ragged batches, whatever lies in the slots of others."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from kernels.selective_scan import batched, reference, selective_scan
from tests.kernels.closeness import assert_close
from tests.kernels.test_causal_conv import BATCHES, poisoned_state, ragged

SHAPES = [(96, 16), (33, 16), (16, 5), (7, 64), (1, 1), (40, 3)]  # channels, states
IDS = ["C{}-N{}".format(*shape) for shape in SHAPES]


@dataclasses.dataclass
class Case:
    x: torch.Tensor
    dt: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    z: torch.Tensor
    dt_bias: torch.Tensor

    def rows(self, first: int, last: int) -> tuple[torch.Tensor, ...]:
        cut = (t[first:last] for t in (self.x, self.dt, self.b, self.c, self.z))
        x, dt, b, c, z = cut
        return x, dt, self.a, b, c, self.d, z, self.dt_bias

    @property
    def args(self) -> tuple[torch.Tensor, ...]:
        return self.rows(0, len(self.x))


def make_case(shape: tuple[int, int], num_tokens: int, dtype: torch.dtype) -> Case:
    """Steps between thousandths and tens; b, c and z are slices of wider tensors."""
    num_channels, num_states = shape
    generator = torch.Generator().manual_seed(num_tokens)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    xz = normal(num_tokens, 2 * num_channels).to(dtype)
    dbc = normal(num_tokens, 3 + 2 * num_states).to(dtype)
    return Case(
        x=xz[:, :num_channels].contiguous(),
        dt=(4 * normal(num_tokens, num_channels)).to(dtype),
        a=-torch.exp(normal(num_channels, num_states)),
        b=dbc[:, 3 : 3 + num_states],
        c=dbc[:, 3 + num_states :],
        d=normal(num_channels),
        z=xz[:, num_channels:],
        dt_bias=normal(num_channels) - 2,
    )


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_selective_scan_equals_reference(
    path: str, dtype: torch.dtype, shape: tuple[int, int], batch: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "_MAX_ELEMENTS", 40 * shape[0] * shape[1])  # long sequences go in pieces
    query_start, lengths, slots, num_slots = ragged(batch)
    case = make_case(shape, int(query_start[-1]), dtype)
    state = poisoned_state(batch, slots, (num_slots, shape[1], shape[0]), torch.float32)
    expected_state = state.clone()
    actual = selective_scan(*case.args, state, query_start, lengths, slots)
    expected = reference.selective_scan(*case.args, expected_state, query_start, lengths, slots)
    assert_close(actual.t(), expected.t())  # relative to each channel's largest
    assert torch.equal(state.isnan(), expected_state.isnan())
    known = ~state.isnan()
    torch.testing.assert_close(state[known], expected_state[known], rtol=1e-4, atol=1e-5)


def test_reference_equals_transformers() -> None:
    case = make_case((24, 16), 40, torch.float32)
    state = torch.full((1, 16, 24), torch.nan)
    actual = reference.selective_scan(*case.args, state, *ragged([(40, 40)])[:2], torch.tensor([0]))
    turned = [t.t()[None] for t in (case.x, case.dt)]
    expected, last = mamba_selective_scan(
        *turned, case.a, case.b.t()[None], case.c.t()[None], D=case.d, z=case.z.t()[None], delta_bias=case.dt_bias,
        delta_softplus=True, return_last_state=True,
    )  # fmt: skip
    assert_close(actual, expected[0].t())
    assert_close(state[0].t(), last[0])


@pytest.mark.parametrize("sizes", [(30,), (1,) * 30, (2, 1, 3, 7, 1, 16), (29, 1)], ids=str)
def test_chunks_change_nothing(path: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    case, slots = make_case((33, 16), 30, dtype), torch.tensor([0])
    whole_state, state = (torch.full((1, 16, 33), torch.nan) for _ in range(2))
    whole = selective_scan(*case.args, whole_state, *ragged([(30, 30)])[:2], slots)
    first = 0
    for size in sizes:
        query_start, lengths, _, _ = ragged([(size, first + size)])
        part = selective_scan(*case.rows(first, first + size), state, query_start, lengths, slots)
        assert_close(part, whole[first : first + size])
        assert path == "torch" or torch.equal(part, whole[first : first + size])
        first += size
    assert_close(state, whole_state)
    assert path == "torch" or torch.equal(state, whole_state)


def test_steps_of_any_size_are_exact(path: str) -> None:
    """softplus from where it is e^x to where it is x: its relative precision decides how long a state remembers."""
    dt = torch.cat((torch.linspace(-80, 25, 400), torch.tensor([19.9999, 20.0, 20.0001, 60.0, 200.0, -200.0])))[:, None]
    one, slots = torch.ones_like(dt), torch.arange(len(dt))
    starts, lengths = torch.arange(len(dt) + 1, dtype=torch.int32), torch.ones(len(dt), dtype=torch.int32)
    zero, state = torch.zeros(1), torch.full((len(dt), 1, 1), torch.nan)
    selective_scan(one, dt, -torch.ones(1, 1), one, one, zero, one, zero, state, starts, lengths, slots)
    error = (state[:, 0].double() / torch.nn.functional.softplus(dt.double()) - 1).abs()
    assert (error[dt > -10] < 1e-6).all() and (error[dt > -81] < 1e-5).all()


def test_nan_stays_in_its_sequence(path: str, dtype: torch.dtype) -> None:
    batch = [(5, 5), (3, 9), (4, 4), (1, 7)]
    query_start, lengths, slots, num_slots = ragged(batch)
    case = make_case((20, 16), 13, dtype)
    state = poisoned_state(batch, slots, (num_slots, 16, 20), torch.float32)
    for t in (case.x, case.dt, case.b, case.c, case.z):
        t[0] = torch.nan
    y = selective_scan(*case.args, state, query_start, lengths, slots)
    assert y[:5].isnan().all() and torch.isfinite(y[5:]).all()
    assert torch.isfinite(state[slots[1:]]).all()


def test_slot_out_of_range_is_refused(path: str) -> None:
    case = make_case((16, 4), 1, torch.float32)
    for slot in (2, 10**6):
        with pytest.raises(IndexError):
            selective_scan(*case.args, torch.zeros(2, 4, 16), *ragged([(1, 1)])[:2], torch.tensor([slot]))


def test_wrong_operands_are_refused() -> None:
    case = make_case((16, 4), 2, torch.float32)
    query_start, lengths, slots, _ = ragged([(2, 2)])
    with pytest.raises(ValueError, match="selective_scan takes"):
        selective_scan(*case.args, torch.zeros(1, 16, 4), query_start, lengths, slots)
    with pytest.raises(ValueError, match="float32"):
        selective_scan(*case.args, torch.zeros(1, 4, 16, dtype=torch.bfloat16), query_start, lengths, slots)
    with pytest.raises(ValueError, match="query_start"):
        selective_scan(*case.args, torch.zeros(1, 4, 16), query_start, lengths[:0], slots)
