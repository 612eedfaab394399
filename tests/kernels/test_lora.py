"""Adapters add what their two matrices do, each token its own, and leave tokens without one alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.lora import add_lora, plan_lora, reference
from tests.kernels.closeness import assert_close


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_case(
    num_tokens: int, din: int, dout: int, rank: int, num_adapters: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """y, x, a, b, scaling, adapters."""
    adapters = torch.randint(-1, num_adapters, (num_tokens,), generator=torch.Generator().manual_seed(9))
    return tuple(
        t.to(device)
        for t in (
            normal(num_tokens, dout, dtype=dtype, seed=1),
            normal(num_tokens, din, dtype=dtype, seed=2),
            normal(num_adapters, rank, din, dtype=dtype, seed=3) * din**-0.5,
            normal(num_adapters, dout, rank, dtype=dtype, seed=4) * rank**-0.5,
            torch.linspace(0.5, 2, num_adapters),
            adapters.int(),
        )
    )


def test_the_definition_is_two_linear_layers_of_each_token() -> None:
    y, x, a, b, scaling, adapters = make_case(9, 24, 20, 4, 3, torch.float32, torch.device("cpu"))
    expected = y.clone()
    for token, adapter in enumerate(adapters.tolist()):
        if adapter >= 0:
            expected[token] += scaling[adapter] * F.linear(F.linear(x[token], a[adapter]), b[adapter])
    add_lora(y, x, a, b, scaling, plan_lora(adapters, 3))
    assert_close(y, expected)
    assert (adapters < 0).any()


@pytest.mark.parametrize(
    "shape",
    [(0, 32, 16, 8, 2), (1, 896, 80, 16, 8), (63, 1100, 130, 5, 4), (70, 40, 33, 100, 1), (300, 64, 48, 8, 3)],
    ids="T{0[0]}-{0[1]}-{0[2]}-r{0[3]}-N{0[4]}".format,
)
def test_the_triton_adapters_equal_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    y, x, a, b, scaling, adapters = make_case(*shape, triton_dtype, triton_device)
    expected = y.clone()
    reference.add_lora(expected, x, a, b, scaling, adapters)
    add_lora(y, x, a, b, scaling, plan_lora(adapters, shape[-1]))
    assert_close(y, expected)


@pytest.mark.parametrize("adapter", [-1, 0, 3])
def test_all_tokens_may_have_the_same_adapter_or_none(triton_device: torch.device, adapter: int) -> None:
    y, x, a, b, scaling, adapters = make_case(40, 64, 48, 8, 4, torch.float32, triton_device)
    expected = y.clone()
    adapters.fill_(adapter)
    unused = [n for n in range(4) if n != adapter]
    reference.add_lora(expected, x, a, b, scaling, adapters)
    a[unused], b[unused] = torch.nan, torch.nan  # what nobody has is never read
    add_lora(y, x, a, b, scaling, plan_lora(adapters, 4))
    assert_close(y, expected)


def test_a_slice_of_a_fused_projection_is_added_to_where_it_lies(triton_device: torch.device) -> None:
    _, _, a, b, scaling, adapters = make_case(20, 64, 48, 8, 2, torch.float32, triton_device)
    fused, wide = (normal(20, 100, dtype=torch.float32, seed=seed).to(triton_device) for seed in (5, 6))
    expected, before = fused[:, 30:78].clone(), fused.clone()
    plan = plan_lora(adapters, 2)
    reference.add_lora(expected, wide[:, 10:74], a, b, scaling, adapters)
    add_lora(fused[:, 30:78], wide[:, 10:74], a, b, scaling, plan)
    assert_close(fused[:, 30:78], expected)
    assert torch.equal(fused[:, :30], before[:, :30]) and torch.equal(fused[:, 78:], before[:, 78:])


def test_a_lower_rank_padded_with_zeros_changes_nothing(triton_device: torch.device) -> None:
    y, x, a, b, scaling, adapters = make_case(20, 64, 48, 8, 2, torch.float32, triton_device)
    padded, plan = y.clone(), plan_lora(adapters, 2)
    add_lora(y, x, a, b, scaling, plan)
    add_lora(padded, x, F.pad(a, (0, 0, 0, 24)), F.pad(b, (0, 24)), scaling, plan)
    assert_close(padded, y)


def test_wrong_operands_are_refused(triton_device: torch.device) -> None:
    y, x, a, b, scaling, adapters = make_case(20, 64, 48, 8, 2, torch.float32, triton_device)
    plan = plan_lora(adapters, 2)
    for wrong in ((y[:, 1:], x, a, b, scaling), (y, x[:, 1:], a, b, scaling), (y, x, a, b[:, :, 1:], scaling)):
        with pytest.raises(ValueError, match="add_lora takes y"):
            add_lora(*wrong, plan)
    with pytest.raises(ValueError, match="3 adapters"):
        add_lora(y, x, a, b, scaling, plan_lora(adapters, 3))
    with pytest.raises(ValueError, match="one number format"):
        add_lora(y, x, a.half(), b, scaling, plan)
    with pytest.raises(ValueError, match="one after the other"):
        add_lora(y.t().contiguous().t(), x, a, b, scaling, plan)
