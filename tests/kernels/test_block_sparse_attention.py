"""Block-sparse attention equals its definition for ragged batches, and torch's attention under the same mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.block_sparse_attention import block_sparse_attention, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_paged_attention import BATCHES, make_case

SHAPES = [(8, 2, 64, 16), (3, 3, 40, 7), (4, 1, 128, 16)]  # num_heads, num_kv_heads, head_dim, block_size
PATTERNS = {
    "phi-3-small": {"sparse_block_size": 64, "num_local_blocks": 2, "stride": 8, "head_step": 1},
    "small-blocks": {"sparse_block_size": 16, "num_local_blocks": 1, "stride": 3, "head_step": 2},
    "all-heads-alike": {"sparse_block_size": 5, "num_local_blocks": 3, "stride": 4, "head_step": 0},
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=["H{}-G{}-K{}-S{}".format(*shape) for shape in SHAPES])
def test_attention_equals_reference(dtype: torch.dtype, shape: tuple[int, ...], batch: str, pattern: str) -> None:
    case = make_case(shape, BATCHES[batch], dtype)
    options = {"scale": shape[2] ** -0.5, **PATTERNS[pattern]}
    assert_close(block_sparse_attention(*case.args, **options), reference.block_sparse_attention(*case.args, **options))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_equals_torch_under_the_mask_of_the_model(pattern: str) -> None:
    length, num_heads = 200, 6
    case = make_case((num_heads, 2, 64, 16), [(length, length)], torch.float32)
    p = PATTERNS[pattern]
    mask = torch.zeros(num_heads, length, length, dtype=torch.bool)
    for head in range(num_heads):
        for query in range(length):
            for key in range(query + 1):
                near = query // p["sparse_block_size"] - key // p["sparse_block_size"] < p["num_local_blocks"]
                column = key // p["sparse_block_size"] + head * p["head_step"] + 1
                mask[head, query, key] = near or column % p["stride"] == 0
    pages = case.block_table[0, : -(-length // 16)].long()
    k, v = (c[pages].transpose(0, 1).flatten(1, 2)[:, :length] for c in (case.k_cache, case.v_cache))
    expected = F.scaled_dot_product_attention(case.q.transpose(0, 1), k, v, attn_mask=mask, enable_gqa=True, scale=0.1)
    actual = block_sparse_attention(*case.args, scale=0.1, **p)
    assert_close(actual, expected.transpose(0, 1).contiguous())
    assert not mask[:, -1].all(), "the pattern hides nothing: the test would compare dense attention"


def test_wrong_arguments_are_refused() -> None:
    case = make_case((4, 2, 8, 4), [(2, 2)], torch.float32)
    with pytest.raises(ValueError, match="stride 0"):
        block_sparse_attention(*case.args, scale=1.0, **PATTERNS["phi-3-small"] | {"stride": 0})
    case.q = case.q[:, :3]
    with pytest.raises(ValueError, match="3 query heads cannot share 2 kv heads"):
        block_sparse_attention(*case.args, scale=1.0, **PATTERNS["phi-3-small"])
    case.q = case.q[..., :7]
    with pytest.raises(ValueError, match="takes q"):
        block_sparse_attention(*case.args, scale=1.0, **PATTERNS["phi-3-small"])
