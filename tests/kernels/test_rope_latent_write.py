"""Queries and the shared key rotate as in ordinary attention; the cache holds what was written and nothing else."""

from __future__ import annotations

import pytest
import torch

from kernels.rope_kv_write import rope_kv_write
from kernels.rope_latent_write import reference, rope_latent_write
from tests.kernels.closeness import assert_close
from tests.kernels.test_rope_kv_write import normal, rope_table

C = 20  # kv_rank


def call(
    q: torch.Tensor, k: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, **changes: torch.Tensor
) -> torch.Tensor:
    arguments = {
        "latent": normal(len(q), C, dtype=q.dtype, seed=3), "cos_sin": rope_table(50, 8),
        "positions": torch.arange(20, 20 + len(q)),
    } | changes  # fmt: skip
    return rope_latent_write(q, k, arguments["latent"], arguments["cos_sin"], arguments["positions"], cache, slots)


@pytest.mark.parametrize("num_tokens", [0, 1, 9])
def test_rotation_is_that_of_ordinary_attention_with_one_kv_head(dtype: torch.dtype, num_tokens: int) -> None:
    wide = normal(num_tokens, 5, 12, dtype=dtype, seed=1)
    q, k = wide[..., 4:], normal(num_tokens, 30, dtype=dtype, seed=2)[:, 3:11]  # slices of wider projections
    cache, slots = torch.zeros(6, 4, C + 8, dtype=dtype), torch.randperm(24)[:num_tokens]
    rotated = call(q, k, cache, slots)
    kv = torch.zeros(2, 6, 1, 4, 8, dtype=dtype)
    expected = rope_kv_write(
        q, k[:, None], k[:, None], rope_table(50, 8), torch.arange(20, 20 + num_tokens), kv[0], kv[1], slots
    )
    torch.testing.assert_close(rotated, expected)
    torch.testing.assert_close(cache[..., C:], kv[0, :, 0])


def test_latents_lie_in_their_slots_and_nothing_else_changes(dtype: torch.dtype) -> None:
    q, k, latent = (normal(4, *shape, dtype=dtype, seed=1) for shape in ((3, 8), (8,), (C,)))
    cache = normal(5, 7, C + 8, dtype=dtype, seed=9)
    before, slots = cache.clone(), torch.tensor([34, -1, 8, 0])
    call(q, k, cache, slots, latent=latent)
    rows, rows_before = cache.flatten(0, 1), before.flatten(0, 1)
    assert torch.equal(rows[[34, 8, 0], :C], latent[[0, 2, 3]])
    others = [slot for slot in range(35) if slot not in (34, 8, 0)]
    assert torch.equal(rows[others], rows_before[others])


def test_index_out_of_range_is_refused() -> None:
    q, k, cache = torch.zeros(1, 2, 8), torch.zeros(1, 8), torch.zeros(2, 4, C + 8)
    for position, slot in ((50, 0), (0, 8)):
        with pytest.raises(IndexError):
            call(q, k, cache, torch.tensor([slot]), positions=torch.tensor([position]))


def test_wrong_shapes_are_refused() -> None:
    q, k, cache, slot = torch.zeros(1, 2, 8), torch.zeros(1, 8), torch.zeros(2, 4, C + 8), torch.tensor([0])
    for changes in ({"latent": torch.zeros(1, C + 1)}, {"cos_sin": rope_table(50, 6)}, {"positions": torch.arange(2)}):
        with pytest.raises(ValueError, match="rope_latent_write takes"):
            call(q, k, cache, slot, **changes)


# num_tokens, num_heads, rope_dim, kv_rank, block_size
@pytest.mark.parametrize(
    "shape",
    [(63, 16, 64, 512, 16), (1, 128, 64, 96, 32), (5, 17, 10, 33, 7)],
    ids="T{0[0]}-H{0[1]}-P{0[2]}-C{0[3]}".format,
)
def test_triton_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    num_tokens, num_heads, rope_dim, kv_rank, block_size = shape
    wide = normal(num_tokens, num_heads, rope_dim + 24, dtype=triton_dtype, seed=1).to(triton_device)
    q, k = wide[..., 24:], normal(num_tokens, rope_dim + 8, dtype=triton_dtype, seed=2).to(triton_device)[:, 8:]
    latent = normal(num_tokens, kv_rank, dtype=triton_dtype, seed=3).to(triton_device)
    positions = torch.randperm(90)[:num_tokens].to(triton_device)
    slots = torch.randperm(12 * block_size)[:num_tokens]
    slots[2::4] = -1
    cache = normal(12, block_size, kv_rank + rope_dim, dtype=triton_dtype, seed=4).to(triton_device)
    where = (rope_table(90, rope_dim).to(triton_device), positions)
    expected_cache = cache.clone()
    expected = reference.rope_latent_write(q, k, latent, *where, expected_cache, slots.to(triton_device))
    assert_close(rope_latent_write(q, k, latent, *where, cache, slots.to(triton_device)), expected)
    assert_close(cache, expected_cache)
