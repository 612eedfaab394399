"""The Triton kernel of block-sparse attention equals the definition, and reads no key that no row looks at."""

from __future__ import annotations

import pytest
import torch

from kernels.block_sparse_attention import block_sparse_attention, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_block_sparse_attention import PATTERNS
from tests.kernels.test_paged_attention import DECODE
from tests.kernels.test_paged_attention_triton import RAGGED, case_on

SHAPES = [(8, 2, 64, 16), (3, 3, 40, 7), (4, 1, 128, 32)]  # num_heads, num_kv_heads, head_dim, block_size


@pytest.fixture(autouse=True)
def device(triton_device: torch.device) -> torch.device:
    return triton_device


@pytest.mark.parametrize("pattern", [*PATTERNS, "everything"])
@pytest.mark.parametrize("batch", [DECODE, [*RAGGED, (3, 700)]], ids=["decode", "ragged"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    list(zip(SHAPES, (torch.float16, torch.float32, torch.float16))),
    ids=["H{}-G{}-K{}-S{}".format(*shape) for shape in SHAPES],
)
def test_attention_equals_reference(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, batch: list[tuple[int, int]], pattern: str
) -> None:
    every = {"sparse_block_size": 8, "num_local_blocks": 1, "stride": 1, "head_step": 1}
    case, options = (
        case_on(device, shape, batch, dtype),
        {"scale": shape[2] ** -0.5, **(PATTERNS | {"everything": every})[pattern]},
    )
    assert_close(block_sparse_attention(*case.args, **options), reference.block_sparse_attention(*case.args, **options))


def test_blocks_that_no_row_looks_at_are_not_read(device: torch.device) -> None:
    pattern = {"sparse_block_size": 16, "num_local_blocks": 2, "stride": 4, "head_step": 0}
    case = case_on(device, (4, 2, 64, 16), [(20, 300)], torch.float16)
    expected = block_sparse_attention(*case.args, scale=0.1, **pattern)
    hidden = [block for block in range(280 // 16 - 1) if (block + 1) % 4]  # before the first row's local blocks
    case.k_cache[case.block_table[0, hidden].long()] = torch.nan
    case.v_cache[case.block_table[0, hidden].long()] = torch.nan
    actual = block_sparse_attention(*case.args, scale=0.1, **pattern)
    assert_close(actual, expected)


def test_empty_batch(device: torch.device) -> None:
    case = case_on(device, (4, 2, 64, 16), [(0, 5)], torch.float32)
    assert block_sparse_attention(*case.args, scale=1.0, **PATTERNS["phi-3-small"]).shape == (0, 4, 64)


def test_what_the_kernel_cannot_read_is_refused(device: torch.device) -> None:
    case = case_on(device, (4, 2, 64, 16), [(3, 3)], torch.float32)
    with pytest.raises(ValueError, match="positive scale"):
        block_sparse_attention(*case.args, scale=0.0, **PATTERNS["phi-3-small"])
    case.k_cache = case.k_cache.mT.contiguous().mT
    with pytest.raises(ValueError, match="dense"):
        block_sparse_attention(*case.args, scale=1.0, **PATTERNS["phi-3-small"])
