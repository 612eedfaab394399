"""Quantized weights mean what their formats say, survive packing, and multiply as the definition does."""

from __future__ import annotations

import pytest
import torch

from kernels.quantized_linear import (
    PackedWeight,
    concatenate,
    pack_awq,
    pack_gptq,
    pack_integers,
    pack_scaled,
    quantized_linear,
    reference,
    select_rows,
)
from tests.kernels.closeness import assert_close

FORMATS = [
    "fp8-tensor", "fp8-rows", "fp8-blocks", "int8-rows", "int8-zeros", "int8-groups", "gptq", "gptq-one-group",
    "gptq-act-order", "gptq-8-bits-act-order", "awq",
]  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator(seed), dtype=torch.int32)


def positive(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed)) * 0.02 + 0.001


def packed_by_hand(
    values: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8)), num_bits: int = 4
) -> torch.Tensor:
    """As many values along dim to a word as `order` has; value order[i] goes into bits b i to b i + b - 1."""
    to_a_word = values.long().unflatten(dim, (-1, len(order))).movedim(dim + 1, -1)
    words = sum(to_a_word[..., value] << num_bits * i for i, value in enumerate(order))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def make_gptq(
    dout: int, din: int, num_groups: int, *, act_order: bool = False
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """A checkpoint's tensors, and the matrix (Dout, Din) that they stand for, computed from the integers themselves."""
    values, zeros = integers(0, 16, din, dout), integers(1, 17, num_groups, dout, seed=2)
    scales = positive(num_groups, dout).half()
    groups = torch.arange(din) // (din // num_groups)
    if act_order:
        groups = groups[torch.randperm(din, generator=generator(3))]
    meant = (scales.float()[groups] * (values - zeros[groups])).t()
    return (packed_by_hand(values, 0), packed_by_hand(zeros - 1, 1), scales, groups.int()), meant


def make_awq(dout: int, din: int, num_groups: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    values, zeros = integers(0, 16, din, dout), integers(0, 16, num_groups, dout, seed=2)
    scales = positive(num_groups, dout).half()
    groups = torch.arange(din) // (din // num_groups)
    meant = (scales.float()[groups] * (values - zeros[groups])).t()
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # as AWQ's packer has it
    return (packed_by_hand(values, 1, order), packed_by_hand(zeros, 1, order), scales), meant


def make_gptq_of_8_bits(dout: int, din: int) -> tuple[PackedWeight, torch.Tensor]:
    values, zeros = integers(0, 256, din, dout), integers(1, 257, din // 32, dout, seed=2)
    scales = positive(din // 32, dout).half()
    groups = (torch.arange(din) // 32)[torch.randperm(din, generator=generator(3))]
    packed = [packed_by_hand(*each, tuple(range(4)), 8) for each in ((values, 0), (zeros - 1, 1))]
    meant = (scales.float()[groups] * (values - zeros[groups])).t()
    return pack_gptq(*packed, scales, groups.int(), num_bits=8), meant


def make(name: str, dout: int, din: int) -> tuple[PackedWeight, torch.Tensor]:
    """The packed weight, and the matrix (Dout, Din) that it stands for."""
    if name == "gptq-8-bits-act-order":
        return make_gptq_of_8_bits(dout, din)
    if name.startswith("gptq"):
        num_groups = 1 if name == "gptq-one-group" else din // 32
        tensors, meant = make_gptq(dout, din, num_groups, act_order=name == "gptq-act-order")
        return pack_gptq(*tensors), meant
    if name == "awq":
        tensors, meant = make_awq(dout, din, din // 32)
        return pack_awq(*tensors), meant
    if name.startswith("int8"):
        weight = integers(-128, 128, dout, din).to(torch.int8)
    else:
        weight = (torch.randn(dout, din, generator=generator()) * 40).to(torch.float8_e4m3fn)
        weight[0, :3] = torch.tensor([448.0, -448.0, 2**-9]).to(torch.float8_e4m3fn)
    if name in ("int8-zeros", "int8-groups"):
        num_groups = 1 if name == "int8-zeros" else din // 32
        scale, zeros = positive(dout, num_groups), integers(-128, 128, dout, num_groups, seed=2).to(torch.int8)
        spread, shift = (each.float().repeat_interleave(din // num_groups, 1) for each in (scale, zeros))
        return pack_scaled(weight, scale, zeros), (weight.float() - shift) * spread
    shape = {"tensor": (), "rows": (dout, 1), "blocks": (-(-dout // 128), -(-din // 128))}[name.split("-")[1]]
    scale = positive(*shape)
    return pack_scaled(weight, scale), reference.dequantize_scaled(weight, scale)


def on(device: torch.device, weight: PackedWeight) -> PackedWeight:
    fields = (weight.values, weight.scales, weight.zeros, weight.input_order)
    values, scales, zeros, order = (None if t is None else t.to(device) for t in fields)
    return PackedWeight(weight.kind, values, scales, zeros, weight.group_size, order)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_gptq_is_scale_times_value_less_zero(num_groups: int, act_order: bool) -> None:
    tensors, meant = make_gptq(24, 96, num_groups, act_order=act_order)
    assert torch.equal(reference.dequantize_gptq(*tensors, zero_offset=1), meant)
    qweight, qzeros, scales, groups = tensors
    shifted = meant + scales.float()[groups.long()].t()
    torch.testing.assert_close(reference.dequantize_gptq(qweight, qzeros, scales, groups, zero_offset=0), shifted)


def test_awq_is_scale_times_value_less_zero() -> None:
    tensors, meant = make_awq(24, 96, 3)
    assert torch.equal(reference.dequantize_awq(*tensors), meant)


def test_scales_of_blocks_are_those_of_their_rows_and_columns() -> None:
    weight, scale = torch.ones(200, 300, dtype=torch.int8), positive(2, 3)
    values = reference.dequantize_scaled(weight, scale)
    for row, column in ((0, 0), (127, 127), (128, 127), (199, 299), (127, 256)):
        assert values[row, column] == scale[row // 128, column // 128]


@pytest.mark.parametrize("name", FORMATS)
def test_packing_loses_nothing(name: str) -> None:
    weight, meant = make(name, 136, 160)
    assert (weight.dout, weight.din) == meant.shape
    torch.testing.assert_close(reference.dequantize(weight), meant, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_that_with_the_matrix_that_is_meant(name: str) -> None:
    weight, meant = make(name, 40, 64)
    x, bias = torch.randn(5, 64, generator=generator(4)), torch.randn(40, generator=generator(5))
    assert_close(quantized_linear(x, weight, bias), torch.nn.functional.linear(x, meant, bias))


@pytest.mark.parametrize("name", ["fp8-rows", "int8-zeros", "gptq-act-order", "awq"])
def test_rows_are_chosen_in_any_order(name: str) -> None:
    weight, meant = make(name, 40, 64)
    rows = torch.tensor([39, 3, 3, 0, 17])
    torch.testing.assert_close(reference.dequantize(select_rows(weight, rows)), meant[rows], rtol=1e-6, atol=0)


def test_a_last_group_may_be_shorter() -> None:
    (qweight, qzeros, scales, _), _ = make_gptq(16, 96, 3)
    weight = pack_gptq(qweight[:11], qzeros, scales, None, group_size=32)
    whole = reference.dequantize(pack_gptq(qweight, qzeros, scales, None))
    assert torch.equal(reference.dequantize(weight), whole[:, :88])


def test_groups_in_order_need_no_g_idx() -> None:
    (qweight, qzeros, scales, _), meant = make_gptq(16, 96, 3)
    assert torch.equal(reference.dequantize(pack_gptq(qweight, qzeros, scales, None)), meant)


def test_zeros_in_the_middle_are_none() -> None:
    values, scales = integers(0, 256, 32, 8), positive(1, 8)
    middle = torch.full((1, 8), 128, dtype=torch.int32)
    given = pack_integers(values, middle, scales, num_bits=8, group_size=32)
    without = pack_integers(values, None, scales, num_bits=8, group_size=32)
    assert given.zeros is without.zeros is None and torch.equal(given.values, without.values)
    four = pack_integers(values % 16, None, scales, group_size=32)
    torch.testing.assert_close(reference.dequantize(four), ((values % 16 - 8).float() * scales).t())


def test_what_is_packed_is_dense_whatever_it_is_packed_from() -> None:
    values, zeros, scales = integers(0, 16, 8, 32).t(), integers(0, 16, 8, 2).t(), positive(8, 2).t()
    for num_bits in (4, 8):
        weight = pack_integers(values, zeros, scales, num_bits=num_bits, group_size=16)
        assert weight.zeros is not None
        assert all(tensor.is_contiguous() for tensor in (weight.values, weight.scales, weight.zeros))


def test_blocks_have_any_size() -> None:
    weight = torch.ones(40, 48, dtype=torch.int8)
    scale = positive(3, 3)
    values = reference.dequantize(pack_scaled(weight, scale, block=(16, 16)))
    assert torch.equal(values, scale.repeat_interleave(16, 0)[:40].repeat_interleave(16, 1))


@pytest.mark.parametrize("name", ["fp8-tensor", "fp8-blocks", "int8-zeros", "gptq-act-order", "awq"])
def test_fused_projections_are_each_on_its_own(name: str) -> None:
    parts = [make(name, dout, 128) for dout in (128, 256)]
    fused = concatenate([weight for weight, _ in parts])
    torch.testing.assert_close(reference.dequantize(fused), torch.cat([meant for _, meant in parts]), rtol=1e-6, atol=0)


def test_what_cannot_be_fused_is_refused() -> None:
    for first, second in (
        ("awq", "fp8-rows"),
        ("gptq", "gptq-one-group"),
        ("gptq", "gptq-act-order"),
        ("int8-rows", "int8-zeros"),
    ):
        with pytest.raises(ValueError, match="cannot be fused"):
            concatenate([make(first, 128, 128)[0], make(second, 128, 128)[0]])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("num_tokens", "dout", "din"), [(0, 8, 64), (1, 136, 160), (63, 72, 64)], ids=str)
def test_the_triton_product_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, name: str, num_tokens: int, dout: int, din: int
) -> None:
    weight = on(triton_device, make(name, dout, din)[0])
    x = torch.randn(num_tokens, din, generator=generator(4)).to(triton_device, triton_dtype)
    for bias in (None, torch.randn(dout, generator=generator(5)).to(triton_device, triton_dtype)):
        assert_close(quantized_linear(x, weight, bias), reference.quantized_linear(x, weight, bias))


@pytest.mark.parametrize("name", ["fp8-blocks", "int8-rows", "awq"])
def test_many_tokens_take_the_larger_tiles(triton_device: torch.device, name: str) -> None:
    weight = on(triton_device, make(name, 136, 160)[0])
    x = torch.randn(130, 200, generator=generator(4)).half().to(triton_device)[:, 40:]
    assert_close(quantized_linear(x, weight), reference.quantized_linear(x, weight, None))


def test_wrong_operands_are_refused() -> None:
    weight, _ = make("awq", 40, 64)
    with pytest.raises(ValueError, match=r"x \(T, 64\)"):
        quantized_linear(torch.zeros(2, 63), weight)
    with pytest.raises(ValueError, match=r"bias \(40,\)"):
        quantized_linear(torch.zeros(2, 64), weight, torch.zeros(39))
    with pytest.raises(ValueError, match="scaled weight"):
        pack_scaled(torch.zeros(4, 4), torch.ones(()))
    with pytest.raises(ValueError, match="takes a scale"):
        pack_scaled(torch.zeros(4, 4, dtype=torch.int8), torch.ones(3))
    with pytest.raises(ValueError, match="zeros"):
        pack_scaled(torch.zeros(4, 4, dtype=torch.int8), torch.ones(4), torch.ones(3))
    with pytest.raises(ValueError, match="multiple of 8 inputs"):
        pack_integers(torch.zeros(12, 8, dtype=torch.int32), None, torch.ones(1, 8), group_size=12)
    with pytest.raises(ValueError, match="scales"):
        pack_integers(torch.zeros(16, 8, dtype=torch.int32), None, torch.ones(1, 8), group_size=8)
    qweight, qzeros, scales, g_idx = make_gptq(24, 96, 3)[0]
    with pytest.raises(ValueError, match="GPTQ"):
        pack_gptq(qweight[:, :16], qzeros, scales, g_idx)
    with pytest.raises(ValueError, match="equally large"):
        pack_gptq(qweight, qzeros, scales, g_idx.clamp(max=1))
    with pytest.raises(ValueError, match="AWQ"):
        pack_awq(qweight, qzeros, scales)
