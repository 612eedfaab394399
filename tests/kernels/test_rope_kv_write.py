"""RoPE equals its definition and the model code of transformers; the cache holds what was written and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kernels.rope_kv_write import reference, rope_kv_write
from tests.kernels.closeness import assert_close

# num_heads, num_kv_heads, head_dim, rope_dim, block_size
SHAPES = [(14, 2, 64, 64, 16), (4, 4, 80, 80, 16), (5, 1, 96, 32, 7), (3, 3, 40, 10, 1), (2, 1, 256, 256, 32)]


def rope_table(num_positions: int, rope_dim: int) -> torch.Tensor:
    angles = torch.arange(num_positions)[:, None] * 10000.0 ** (-torch.arange(0, rope_dim, 2) / rope_dim)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def normal(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "H{}-G{}-K{}-rope{}-S{}".format(*s))
def test_rope_equals_reference(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    num_heads, num_kv_heads, head_dim, rope_dim, block_size = shape
    table = rope_table(300, rope_dim)
    for num_tokens in (0, 1, 5, 63):
        width = (num_heads + 2 * num_kv_heads) * head_dim
        qkv = normal(num_tokens, width, dtype=dtype, seed=num_tokens)
        q, k, v = (
            part.view(num_tokens, part.shape[1] // head_dim, head_dim)
            for part in qkv.split([num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], dim=1)
        )
        generator = torch.Generator().manual_seed(1)
        positions = torch.randint(0, 300, (num_tokens,), generator=generator)  # in no order
        num_blocks = 64 // block_size + 3
        slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
        slots[::4] = -1
        untouched = normal(num_blocks, num_kv_heads, block_size, head_dim, dtype=dtype, seed=9)
        for cos_sin in (table, None):
            before = qkv.clone()
            k_cache, v_cache, k_expected, v_expected = (untouched.clone() for _ in range(4))
            actual = rope_kv_write(q, k, v, cos_sin, positions, k_cache, v_cache, slots)
            expected = reference.rope_kv_write(q, k, v, cos_sin, positions, k_expected, v_expected, slots)
            assert_close(actual, expected, "q")
            assert_close(k_cache, k_expected, "k_cache")
            assert torch.equal(v_cache, v_expected)
            assert torch.equal(qkv, before)


def test_rope_equals_transformers(path: str) -> None:
    q, k = normal(9, 4, 64, dtype=torch.float32, seed=1), normal(9, 2, 64, dtype=torch.float32, seed=2)
    table, positions = rope_table(50, 64), torch.arange(20, 29)
    cache = torch.zeros(2, 2, 2, 8, 64)
    actual = rope_kv_write(q, k, k, table, positions, cache[0], cache[1], torch.arange(9))
    cos, sin = (part[positions].repeat(1, 2)[None] for part in table.chunk(2, dim=1))
    expected_q, expected_k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    assert_close(actual, expected_q[0].transpose(0, 1))
    assert_close(cache[0].transpose(1, 2).flatten(0, 1)[:9], expected_k[0].transpose(0, 1))


def test_index_out_of_range_is_refused(path: str) -> None:
    q, cache = torch.zeros(1, 2, 8), torch.zeros(2, 2, 4, 8)
    for position, slot in ((50, 0), (0, 8)):
        with pytest.raises(IndexError):
            rope_kv_write(
                q, q, q, rope_table(50, 8), torch.tensor([position]), cache, cache.clone(), torch.tensor([slot])
            )


def test_wrong_shapes_are_refused() -> None:
    q, cache, index = torch.zeros(1, 2, 8), torch.zeros(2, 2, 4, 8), torch.tensor([0])
    for wrong_q, cos_sin, slots in (
        (torch.zeros(1, 2, 16), rope_table(5, 8), index),
        (q, rope_table(5, 10), index),
        (q, rope_table(5, 8), torch.tensor([0, 1])),
    ):
        with pytest.raises(ValueError):
            rope_kv_write(wrong_q, q, q, cos_sin, index, cache, cache.clone(), slots)


# num_tokens, num_heads, num_kv_heads, head_dim, rope_dim (0: nothing rotates), block_size
TRITON_SHAPES = [
    (63, 14, 2, 64, 64, 16),
    (1, 32, 8, 128, 128, 16),
    (5, 5, 1, 96, 32, 7),
    (9, 3, 3, 80, 80, 32),
    (4, 40, 20, 40, 10, 1),
    (17, 4, 2, 112, 0, 16),
    (0, 2, 1, 64, 64, 16),
]


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn], ids=["plain", "fp8"])
@pytest.mark.parametrize("shape", TRITON_SHAPES, ids=lambda s: "T{}-H{}-G{}-K{}-rope{}-S{}".format(*s))
def test_triton_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...], cache_dtype: torch.dtype | None
) -> None:
    num_tokens, num_heads, num_kv_heads, head_dim, rope_dim, block_size = shape
    heads = (num_heads, num_kv_heads, num_kv_heads)
    qkv = normal(num_tokens, sum(heads), head_dim, dtype=triton_dtype, seed=num_tokens).to(triton_device)
    before = qkv.clone()
    table = rope_table(300, rope_dim).to(triton_device) if rope_dim else None
    num_blocks = 64 // block_size + 3
    slots, positions = torch.randperm(num_blocks * block_size)[:num_tokens], torch.randperm(300)[:num_tokens]
    slots[2::4] = -1
    where = (table, positions.to(triton_device))
    caches = normal(2, num_blocks, num_kv_heads, block_size, head_dim, dtype=torch.float32, seed=9)
    caches = caches.to(triton_device, cache_dtype or triton_dtype)
    expected_caches = caches.clone()
    options = {"k_scale": 0.01, "v_scale": 0.005} if cache_dtype else {}  # the largest values do not fit
    expected = reference.rope_kv_write(
        *qkv.split(heads, 1), *where, *expected_caches, slots.to(triton_device), **options
    )
    actual = rope_kv_write(*qkv.split(heads, 1), *where, *caches, slots.to(triton_device), **options)
    assert_close(actual, expected, "q")
    if cache_dtype is None:
        assert_close(caches[0], expected_caches[0], "k_cache")
        assert torch.equal(caches[1], expected_caches[1])
    else:
        codes, expected_codes = (c.view(torch.uint8).int() for c in (caches, expected_caches))
        assert (codes - expected_codes).abs().max() <= 1  # a sum rounded otherwise may lie on the other side of a tie
        assert (codes != expected_codes).float().mean() < 0.01
        assert not num_tokens or (caches.float().abs() == 448).any()
    assert torch.equal(qkv, before)


def test_float8_caches_hold_what_torch_rounds(path: str) -> None:
    x = torch.linspace(-500, 500, 4096).view(8, 2, 256)
    caches = torch.zeros(2, 2, 2, 4, 256, dtype=torch.float8_e4m3fn)
    rope_kv_write(x, x, x / 4, None, torch.arange(8), *caches, torch.arange(8), v_scale=0.5)
    k, v = (cache.transpose(1, 2).flatten(0, 1).float() for cache in caches)
    assert torch.equal(k, x.clamp(-448, 448).to(torch.float8_e4m3fn).float())
    assert torch.equal(v, (x / 2).to(torch.float8_e4m3fn).float())
