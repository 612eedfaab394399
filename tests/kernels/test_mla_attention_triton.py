"""The Triton kernel of attention over latents equals the definition: ragged batches, any sizes, splits of long contexts."""

from __future__ import annotations

import pytest
import torch

from kernels.mla_attention import mla_attention, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_mla_attention import latent_case
from tests.kernels.test_paged_attention import DECODE
from tests.kernels.test_paged_attention_triton import RAGGED

# num_heads, kv_rank, rope_dim, block_size
SHAPES = [(16, 512, 64, 16), (5, 20, 8, 4), (3, 33, 10, 7), (40, 256, 32, 32), (1, 8, 2, 1)]
IDS = ["H{}-C{}-P{}-S{}".format(*shape) for shape in SHAPES]


@pytest.fixture(autouse=True)
def device(triton_device: torch.device) -> torch.device:
    return triton_device


def arguments(
    device: torch.device, shape: tuple[int, ...], batch: list[tuple[int, int]], dtype: torch.dtype
) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in latent_case(shape, batch, dtype)[1]]


@pytest.mark.parametrize("batch", [DECODE, RAGGED], ids=["decode", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_attention_equals_reference(
    device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...], batch: list[tuple[int, int]]
) -> None:
    args = arguments(device, shape, batch, triton_dtype)
    options = {"kv_rank": shape[1], "scale": (shape[1] + shape[2]) ** -0.5}
    assert_close(mla_attention(*args, **options), reference.mla_attention(*args, **options))


def test_long_contexts_are_split_and_merged(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, triton_dtype: torch.dtype
) -> None:
    from kernels.mla_attention import kernel

    asked = []

    def sixteen(num_programs: int, max_keys: int, device: torch.device) -> int:
        asked.append((num_programs, max_keys))
        return 16

    monkeypatch.setattr(kernel, "choose_num_splits", sixteen)
    args = arguments(device, (5, 20, 8, 4), [(1, 300), (1, 1), (2, 65), (0, 7)], triton_dtype)  # most splits see no key
    options = {"kv_rank": 20, "scale": 0.2}
    assert_close(mla_attention(*args, **options), reference.mla_attention(*args, **options))
    assert asked == [(4 // 3 + 4, 77 * 4)]


def test_queries_may_be_a_slice_of_a_wider_tensor(device: torch.device) -> None:
    q, *rest = arguments(device, SHAPES[1], RAGGED, torch.float16)
    expected = mla_attention(q, *rest, kv_rank=20, scale=0.2)
    assert torch.equal(mla_attention(torch.cat((q, q), 1)[:, :5], *rest, kv_rank=20, scale=0.2), expected)


def test_empty_batch(device: torch.device) -> None:
    args = arguments(device, SHAPES[1], [(0, 5)], torch.float32)
    assert mla_attention(*args, kv_rank=20, scale=1.0).shape == (0, 5, 20)


def test_what_the_kernel_cannot_read_is_refused(device: torch.device) -> None:
    q, *rest = arguments(device, SHAPES[1], [(3, 3)], torch.float32)
    with pytest.raises(ValueError, match="positive scale"):
        mla_attention(q, *rest, kv_rank=20, scale=-1.0)
    with pytest.raises(ValueError, match="dense"):
        mla_attention(q.mT.contiguous().mT, *rest, kv_rank=20, scale=1.0)
