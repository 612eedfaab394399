"""The Triton kernel equals the definition: ragged batches, odd head sizes, splits of long contexts, float8 caches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kernels.paged_attention import paged_attention, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_paged_attention import DECODE, OPTIONS, Case, make_case

# num_heads, num_kv_heads, head_dim, block_size
SHAPES = [
    (10, 2, 64, 16),
    (4, 4, 80, 16),
    (5, 1, 96, 32),
    (6, 3, 112, 16),
    (2, 1, 120, 32),
    (8, 1, 128, 16),
    (2, 2, 256, 16),
    (3, 3, 40, 7),
    (21, 1, 8, 4),
]
IDS = ["H{}-G{}-K{}-S{}".format(*shape) for shape in SHAPES]
RAGGED = [(63, 63), (0, 20), (1, 257), (5, 256), (1, 1), (16, 47), (0, 0)]


@pytest.fixture(autouse=True)
def device(triton_device: torch.device) -> torch.device:
    return triton_device


def case_on(device: torch.device, shape: tuple[int, ...], batch: list[tuple[int, int]], dtype: torch.dtype) -> Case:
    case = make_case(shape, batch, dtype)
    return Case(*(tensor.to(device) for tensor in case.args))


@pytest.mark.parametrize("batch", [DECODE, RAGGED], ids=["decode", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_attention_equals_reference(
    device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...], batch: list[tuple[int, int]]
) -> None:
    case, scale = case_on(device, shape, batch, triton_dtype), shape[2] ** -0.5
    assert_close(paged_attention(*case.args, scale=scale), reference.paged_attention(*case.args, scale=scale))


def test_prompts_alone_equal_reference(device: torch.device) -> None:
    case = case_on(device, (8, 2, 64, 16), [(63, 63), (130, 130), (40, 300)], torch.float16)  # the largest tiles
    assert_close(paged_attention(*case.args, scale=0.1), reference.paged_attention(*case.args, scale=0.1))


def options_of(name: str, num_heads: int, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    options = dict(OPTIONS[name])
    if "alibi_slopes" in options:
        options["alibi_slopes"] = 2.0 ** -torch.arange(1, num_heads + 1, device=device)
    if "sinks" in options:
        options["sinks"] = torch.linspace(-2, 3, num_heads, device=device).to(dtype)
    return options


@pytest.mark.parametrize(
    ("shape", "dtype"), [(SHAPES[0], torch.float16), (SHAPES[1], torch.float32)], ids=["K64-f16", "K80-f32"]
)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_reference(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    case, options = case_on(device, shape, RAGGED, dtype), options_of(name, shape[0], device, dtype)
    actual = paged_attention(*case.args, scale=0.1, **options)
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, **options))


@pytest.mark.parametrize("name", ["plain", "window64", "sinks", "everything", "bidirectional"])
def test_long_contexts_are_split_and_merged(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, triton_dtype: torch.dtype, name: str
) -> None:
    from kernels import triton_split_kv as split_kv
    from kernels.paged_attention import kernel

    merged = []

    def merge_splits(partial: torch.Tensor, partial_lse: torch.Tensor, out: torch.Tensor) -> None:
        merged.append(partial.shape[2])
        split_kv.merge_splits(partial, partial_lse, out)

    monkeypatch.setattr(kernel, "merge_splits", merge_splits)
    monkeypatch.setattr(split_kv, "num_processors", lambda device: 132)
    monkeypatch.setattr(split_kv, "_MIN_KEYS", 64)
    case = case_on(device, (5, 1, 64, 16), [(1, 600), (1, 1), (1, 65), (0, 7)], triton_dtype)  # most splits see no key
    options = {} if name == "plain" else options_of(name, 5, device, triton_dtype)
    actual = paged_attention(*case.args, scale=0.1, **options)
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, **options))
    assert merged == [8]


def test_splits_fill_the_processors_and_no_more() -> None:
    from kernels.triton_split_kv import choose_num_splits

    cpu = torch.device("cpu")  # counts as eight processors
    assert (
        choose_num_splits(1, 100, cpu)
        == choose_num_splits(16, 1 << 20, cpu)
        == choose_num_splits(1000, 1 << 20, cpu)
        == 1
    )
    assert choose_num_splits(1, 1 << 20, cpu) == 16
    assert choose_num_splits(1, 1500, cpu) == 4
    assert choose_num_splits(3, 1 << 20, cpu) == 4


def test_pages_that_left_the_window_may_be_freed(device: torch.device, triton_dtype: torch.dtype) -> None:
    case = case_on(device, (4, 2, 64, 16), [(1, 200), (20, 200)], triton_dtype)
    expected = paged_attention(*case.args, scale=0.1, window=30)
    case.k_cache[case.block_table[:, :9].long()] = torch.nan  # positions below 144
    case.v_cache[case.block_table[:, :9].long()] = torch.nan
    case.block_table[:, :9] = -1
    assert torch.equal(paged_attention(*case.args, scale=0.1, window=30), expected)


def test_rows_may_be_of_another_sequence_than_the_keys(device: torch.device, triton_dtype: torch.dtype) -> None:
    case = case_on(device, SHAPES[1], [(5, 3), (1, 1), (70, 2), (1, 300), (9, 40)], triton_dtype)
    actual = paged_attention(*case.args, scale=0.1, causal=False)
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, causal=False))


def test_rows_without_a_key_are_zero(device: torch.device) -> None:
    case = case_on(device, SHAPES[1], [(3, 0), (1, 20)], torch.float32)
    actual = paged_attention(*case.args, scale=0.1, causal=False)
    assert not actual[:3].any()
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, causal=False))


def test_queries_may_be_a_slice_of_a_wider_tensor(device: torch.device) -> None:
    case = case_on(device, SHAPES[0], RAGGED, torch.float16)
    expected = paged_attention(*case.args, scale=0.1)
    case.q = torch.cat((case.q, case.q), dim=1)[:, :10]
    assert torch.equal(paged_attention(*case.args, scale=0.1), expected)


def test_large_scores_do_not_overflow(device: torch.device, triton_dtype: torch.dtype) -> None:
    case = case_on(device, (2, 1, 64, 16), [(40, 40), (1, 70)], triton_dtype)
    case.q *= 100
    assert_close(paged_attention(*case.args, scale=1.0), reference.paged_attention(*case.args, scale=1.0))


def test_empty_batch(device: torch.device) -> None:
    case = case_on(device, (2, 1, 64, 16), [(0, 5)], torch.float32)
    assert paged_attention(*case.args, scale=1.0).shape == (0, 2, 64)


@pytest.mark.parametrize("batch", [[(1, 300)], RAGGED], ids=["decode", "ragged"])
def test_float8_caches_equal_reference(
    device: torch.device, triton_dtype: torch.dtype, batch: list[tuple[int, int]]
) -> None:
    case = case_on(device, (8, 2, 80, 16), batch, triton_dtype)
    caches = {name: (getattr(case, name) / 0.02).to(torch.float8_e4m3fn) for name in ("k_cache", "v_cache")}
    case = dataclasses.replace(case, **caches)
    options = {"scale": 0.1, "k_scale": 0.02, "v_scale": 0.03}
    assert_close(paged_attention(*case.args, **options), reference.paged_attention(*case.args, **options))


def test_what_the_kernel_cannot_read_is_refused(device: torch.device) -> None:
    case = case_on(device, (4, 2, 64, 16), [(3, 3)], torch.float32)
    with pytest.raises(ValueError, match="positive scale"):
        paged_attention(*case.args, scale=0.0)
    with pytest.raises(ValueError, match="dense"):
        paged_attention(case.q, case.k_cache.mT.contiguous().mT, *case.args[2:], scale=1.0)
