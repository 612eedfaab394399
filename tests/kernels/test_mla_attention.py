"""Attention over latents equals its definition for ragged batches, and plain attention whose keys and values are made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.mla_attention import mla_attention, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_paged_attention import BATCHES, MIXED, Case, make_case

# num_heads, kv_rank, rope_dim, block_size
SHAPES = [(16, 512, 64, 16), (5, 20, 8, 4), (3, 33, 10, 7), (40, 256, 32, 16), (1, 8, 2, 1)]
IDS = ["H{}-C{}-P{}-S{}".format(*shape) for shape in SHAPES]


def latent_case(
    shape: tuple[int, ...], batch: list[tuple[int, int]], dtype: torch.dtype
) -> tuple[Case, tuple[torch.Tensor, ...]]:
    """A batch as in the tests of paged attention, and the arguments of the call: one kv head, no values beside the keys."""
    num_heads, kv_rank, rope_dim, block_size = shape
    case = make_case((num_heads, 1, kv_rank + rope_dim, block_size), batch, dtype)
    return case, (case.q, case.k_cache[:, 0], case.block_table, case.query_start, case.seq_lens)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_attention_equals_reference(dtype: torch.dtype, shape: tuple[int, ...], batch: str) -> None:
    _, args = latent_case(shape, BATCHES[batch], dtype)
    options = {"kv_rank": shape[1], "scale": (shape[1] + shape[2]) ** -0.5}
    assert_close(mla_attention(*args, **options), reference.mla_attention(*args, **options))


@pytest.mark.parametrize("batch", ["prefill", "mixed"])
def test_attention_equals_that_over_keys_and_values_that_are_made(batch: str) -> None:
    num_heads, kv_rank, rope_dim, nope_dim, v_dim, scale = 4, 24, 8, 12, 10, 0.2
    case, (q, cache, *where) = latent_case((num_heads, kv_rank, rope_dim, 16), BATCHES[batch], torch.float32)
    to_keys, to_values = torch.randn(num_heads, nope_dim, kv_rank), torch.randn(num_heads, v_dim, kv_rank)
    q_nope, q_rope = torch.randn(len(q), num_heads, nope_dim), q[..., kv_rank:]
    absorbed = torch.cat((torch.einsum("thn,hnc->thc", q_nope, to_keys), q_rope), -1)
    attended = mla_attention(absorbed, cache, *where, kv_rank=kv_rank, scale=scale)
    got = torch.einsum("thc,hvc->thv", attended, to_values)
    for r, length in enumerate(case.seq_lens.tolist()):
        first, last = case.query_start[r : r + 2].tolist()
        if first == last:
            continue
        latent, k_rope = (
            cache[case.block_table[r, : -(-length // 16)].long()].flatten(0, 1)[:length].split((kv_rank, rope_dim), 1)
        )
        keys = torch.einsum("lc,hnc->hln", latent, to_keys)
        keys = torch.cat((keys, k_rope.expand(num_heads, -1, -1)), -1)  # (H, L, N + P)
        values = torch.einsum("lc,hvc->hlv", latent, to_values)
        queries = torch.cat((q_nope, q_rope), -1)[first:last].transpose(0, 1)  # (H, n, N + P)
        seen = torch.arange(length) <= torch.arange(length - (last - first), length)[:, None]
        want = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale)
        assert_close(got[first:last], want.transpose(0, 1).contiguous(), f"sequence {r}")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_is_as_near_as_that_of_keys_and_values_that_are_made(half: torch.dtype) -> None:
    """Absorbing moves roundings from keys and values to queries and outputs; it must not add to them."""
    num_heads, kv_rank, rope_dim, nope_dim, v_dim, length = 8, 256, 32, 64, 64, 100
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(half).double()

    q_nope, q_rope = normal(length, num_heads, nope_dim), normal(length, num_heads, rope_dim)
    latent, k_rope = normal(length, kv_rank), normal(length, rope_dim)
    to_keys, to_values = (normal(num_heads, n, kv_rank, scale=kv_rank**-0.5) for n in (nope_dim, v_dim))
    scale = (nope_dim + rope_dim) ** -0.5

    def made(rounded: torch.dtype) -> torch.Tensor:
        keys = torch.einsum("lc,hnc->hln", latent, to_keys).to(rounded)
        keys = torch.cat((keys, k_rope.to(rounded).expand(num_heads, -1, -1)), -1)
        queries = torch.cat((q_nope, q_rope), -1).to(rounded).transpose(0, 1)
        values = torch.einsum("lc,hvc->hlv", latent, to_values).to(rounded)
        wide = (t.double() for t in (queries, keys, values))
        return F.scaled_dot_product_attention(*wide, is_causal=True, scale=scale).to(rounded).double()

    absorbed = torch.cat((torch.einsum("thn,hnc->thc", q_nope, to_keys), q_rope), -1).to(half)
    cache = torch.cat((latent, k_rope), -1).to(half).view(4, 25, -1)
    where = (
        torch.arange(4, dtype=torch.int32)[None],
        torch.tensor([0, length], dtype=torch.int32),
        torch.tensor([length]),
    )
    attended = mla_attention(absorbed, cache, *where, kv_rank=kv_rank, scale=scale).double()
    got = torch.einsum("thc,hvc->htv", attended, to_values).to(half).double()
    exact = made(torch.float64)
    error, theirs = (got - exact).square().mean().sqrt(), (made(half) - exact).square().mean().sqrt()
    assert error < 1.3 * theirs, f"{error:.1e} against {theirs:.1e}"


def test_queries_may_be_a_slice_of_a_wider_tensor(dtype: torch.dtype) -> None:
    _, (q, *rest) = latent_case(SHAPES[1], MIXED, dtype)
    expected = mla_attention(q, *rest, kv_rank=20, scale=0.2)
    wider = torch.cat((q, q), 1)[:, :5]
    assert torch.equal(mla_attention(wider, *rest, kv_rank=20, scale=0.2), expected)


def test_empty_batch() -> None:
    _, args = latent_case(SHAPES[1], [(0, 5)], torch.float32)
    assert mla_attention(*args, kv_rank=20, scale=1.0).shape == (0, 5, 20)


def test_wrong_shapes_are_refused() -> None:
    _, args = latent_case(SHAPES[1], [(3, 3)], torch.float32)
    with pytest.raises(ValueError, match="mla_attention takes"):
        mla_attention(args[0][..., :-1], *args[1:], kv_rank=20, scale=1.0)
    with pytest.raises(ValueError, match="mla_attention takes"):
        mla_attention(*args, kv_rank=29, scale=1.0)
    with pytest.raises(ValueError, match="sequences"):
        mla_attention(*args[:3], args[3][:1], args[4], kv_rank=20, scale=1.0)
