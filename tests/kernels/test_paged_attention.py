"""Paged attention equals its definition for ragged batches, and never lets through what lies in pages of others."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from kernels.paged_attention import paged_attention, reference
from tests.kernels.closeness import assert_close

# num_heads, num_kv_heads, head_dim, block_size
SHAPES = [
    (14, 2, 64, 16),
    (4, 4, 80, 16),
    (10, 2, 96, 32),
    (3, 3, 40, 7),
    (8, 1, 128, 16),
    (2, 2, 256, 16),
    (21, 1, 8, 4),
]
IDS = ["H{}-G{}-K{}-S{}".format(*shape) for shape in SHAPES]
# (new tokens, length) of each sequence
DECODE = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 255), (1, 256), (1, 257)]
PREFILL = [(63, 63), (1, 1), (17, 17), (130, 130)]
MIXED = [(1, 40), (0, 20), (33, 33), (5, 256), (1, 257), (16, 47), (0, 0)]
BATCHES = {"decode": DECODE, "prefill": PREFILL, "mixed": MIXED, "one": [(1, 300)]}


@dataclasses.dataclass
class Case:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor

    @property
    def args(self) -> tuple[torch.Tensor, ...]:
        return (self.q, self.k_cache, self.v_cache, self.block_table, self.query_start, self.seq_lens)


def make_case(shape: tuple[int, ...], batch: list[tuple[int, int]], dtype: torch.dtype, seed: int = 0) -> Case:
    """Every element of the caches that no sequence owns is NaN; the ends of the block table point nowhere."""
    num_heads, num_kv_heads, head_dim, block_size = shape
    generator = torch.Generator().manual_seed(seed)
    counts, lengths = (torch.tensor(column, dtype=torch.int32) for column in zip(*batch))
    num_pages = [-(-length // block_size) for length in lengths.tolist()]
    num_blocks = sum(num_pages) + 3
    order = torch.randperm(num_blocks, generator=generator).to(torch.int32)
    block_table = torch.full((len(batch), max(num_pages) + 2), 10**6, dtype=torch.int32)
    k_cache, v_cache = (torch.full((num_blocks, num_kv_heads, block_size, head_dim), torch.nan) for _ in range(2))
    used = 0
    for r, length in enumerate(lengths.tolist()):
        pages = order[used : used + num_pages[r]]
        used += num_pages[r]
        block_table[r, : len(pages)] = pages
        for position in range(length):
            page = (pages[position // block_size], slice(None), position % block_size)
            k_cache[page], v_cache[page] = (torch.randn(num_kv_heads, head_dim, generator=generator) for _ in range(2))
    query_start = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    q = 2 * torch.randn(int(query_start[-1]), num_heads, head_dim, generator=generator)
    return Case(q.to(dtype), k_cache.to(dtype), v_cache.to(dtype), block_table, query_start, lengths)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_attention_equals_reference(path: str, dtype: torch.dtype, shape: tuple[int, ...], batch: str) -> None:
    case = make_case(shape, BATCHES[batch], dtype)
    scale = shape[2] ** -0.5
    assert_close(paged_attention(*case.args, scale=scale), reference.paged_attention(*case.args, scale=scale))


OPTIONS = {
    "window5": {"window": 5},
    "window64": {"window": 64},
    "window1000": {"window": 1000},
    "softcap": {"softcap": 20.0},
    "alibi": {"alibi_slopes": True},
    "sinks": {"sinks": True},
    "bidirectional": {"causal": False},
    "bidirectional-window": {"causal": False, "window": 9},
    "everything": {"window": 33, "softcap": 5.0, "alibi_slopes": True, "sinks": True},
}


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1]], ids=IDS[:2])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_reference(path: str, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    case = make_case(shape, MIXED, dtype)
    options = dict(OPTIONS[name])
    if "alibi_slopes" in options:
        options["alibi_slopes"] = 2.0 ** -torch.arange(1, shape[0] + 1)
    if "sinks" in options:
        options["sinks"] = torch.linspace(-2, 3, shape[0]).to(dtype)
    actual = paged_attention(*case.args, scale=0.1, **options)
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, **options))


def test_attention_equals_torch(path: str) -> None:
    case = make_case((6, 2, 64, 16), [(100, 100)], torch.float32)
    pages = case.block_table[0, :7].long()
    k, v = (c[pages].transpose(0, 1).flatten(1, 2)[:, :100] for c in (case.k_cache, case.v_cache))
    expected = F.scaled_dot_product_attention(case.q.transpose(0, 1), k, v, is_causal=True, enable_gqa=True)
    assert_close(paged_attention(*case.args, scale=0.125), expected.transpose(0, 1).contiguous())


def test_pages_that_left_the_window_may_be_freed(path: str, dtype: torch.dtype) -> None:
    case = make_case((4, 2, 64, 16), [(1, 200), (20, 200)], dtype)
    expected = paged_attention(*case.args, scale=0.1, window=30)
    defined = reference.paged_attention(*case.args, scale=0.1, window=30)
    case.k_cache[case.block_table[:, :9].long()] = torch.nan  # positions below 144
    case.v_cache[case.block_table[:, :9].long()] = torch.nan
    case.block_table[:, :9] = -1
    assert torch.equal(paged_attention(*case.args, scale=0.1, window=30), expected)
    assert torch.equal(reference.paged_attention(*case.args, scale=0.1, window=30), defined)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_rows_may_be_of_another_sequence_than_the_keys(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = make_case(shape, [(5, 3), (1, 1), (70, 2), (1, 300), (9, 40)], dtype)
    actual = paged_attention(*case.args, scale=0.1, causal=False)
    assert_close(actual, reference.paged_attention(*case.args, scale=0.1, causal=False))
    one = make_case(shape, [(1, 3)], dtype)  # every row sees all keys, so it does not matter how many there are
    alone = dataclasses.replace(
        one, q=case.q[2:3], k_cache=case.k_cache, v_cache=case.v_cache, block_table=case.block_table[:1]
    )
    assert_close(actual[2:3], paged_attention(*alone.args, scale=0.1, causal=False))


def test_queries_may_be_a_slice_of_a_wider_tensor(path: str, dtype: torch.dtype) -> None:
    case = make_case(SHAPES[0], MIXED, dtype)
    expected = paged_attention(*case.args, scale=0.1)
    case.q = torch.cat((case.q, case.q), dim=1)[:, :14]
    assert torch.equal(paged_attention(*case.args, scale=0.1), expected)


def test_large_scores_do_not_overflow(path: str, dtype: torch.dtype) -> None:
    case = make_case((2, 1, 64, 16), [(40, 40), (1, 70)], dtype)
    case.q *= 100
    assert_close(paged_attention(*case.args, scale=1.0), reference.paged_attention(*case.args, scale=1.0))


def test_float8_caches_hold_keys_and_values_in_units_of_their_scales(path: str, dtype: torch.dtype) -> None:
    case = make_case(SHAPES[0], MIXED, dtype)
    codes = [(cache / 0.03125).to(torch.float8_e4m3fn) for cache in (case.k_cache, case.v_cache)]
    exact = dataclasses.replace(case, **{
        name: code.float().mul(0.03125).to(dtype) for name, code in zip(("k_cache", "v_cache"), codes)
    })  # fmt: skip
    actual = paged_attention(case.q, *codes, *case.args[3:], scale=0.1, k_scale=0.03125, v_scale=0.03125)
    assert_close(actual, reference.paged_attention(*exact.args, scale=0.1))
    scaled = reference.paged_attention(case.q, *codes, *case.args[3:], scale=0.1, k_scale=0.03125, v_scale=0.03125)
    assert_close(actual, scaled)


def test_empty_batch(path: str) -> None:
    case = make_case((2, 1, 64, 16), [(0, 5)], torch.float32)
    assert paged_attention(*case.args, scale=1.0).shape == (0, 2, 64)


def test_wrong_shapes_are_refused() -> None:
    case = make_case((4, 2, 64, 16), [(3, 3)], torch.float32)
    with pytest.raises(ValueError, match="evenly"):
        paged_attention(case.q[:, :3], *case.args[1:], scale=1.0)
    with pytest.raises(ValueError, match="sinks"):
        paged_attention(*case.args, scale=1.0, sinks=torch.zeros(3))
    with pytest.raises(ValueError, match="sequences"):
        paged_attention(*case.args[:4], case.query_start[:1], case.seq_lens, scale=1.0)
