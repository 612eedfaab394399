"""What frontend and executor agree on: an item's bytes, their digest in whatever pieces they come, and number formats."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from forebay.media_packing import MAX_CHUNK_BYTES, ItemDigest, TensorForm, pack

DTYPES = ("uint8", "int32", "int64", "float16", "float32")


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    found = {}
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, min_size=1)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        numbers = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape)
        found[name] = np.asarray(numbers).astype(draw(st.sampled_from(DTYPES)))
    return found


@settings(max_examples=200, deadline=None)
@given(tensors(), st.lists(st.integers(1, 50), min_size=1))
def test_the_digest_is_the_same_in_any_pieces(given_tensors: dict[str, np.ndarray], sizes: list[int]) -> None:
    item = pack("image", given_tensors)
    data = b"".join(bytes(piece) for piece in item.chunks())
    assert len(data) == item.num_bytes == sum(form.num_bytes for form in item.forms)
    digest, at, step = ItemDigest("image", item.forms), 0, 0
    while at < len(data):
        size = sizes[step % len(sizes)]
        digest.update(data[at : at + size])
        at, step = at + size, step + 1
    assert digest.digest() == item.digest


def test_the_digest_is_as_documented() -> None:
    item = pack("audio", {"b": np.array([1], np.int32), "a": np.array([[2, 3]], np.uint8)})
    assert item.digest == hashlib.sha256(b"audio\0a\0uint8\x001,2\0\2\3\0b\0int32\x001\0\1\0\0\0").digest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), np.uint8)},
        {"a": np.zeros((3, 2), np.float32)},
        {"b": np.zeros((3, 2), np.uint8)},
        {"a": np.zeros((3, 2), np.uint8), "b": np.zeros(0, np.uint8)},
    ],
    ids=["shape", "dtype", "name", "another-tensor"],
)
def test_items_that_differ_in_form_alone_have_other_digests(other: dict[str, np.ndarray]) -> None:
    same = {"a": np.zeros((3, 2), np.uint8)}
    assert pack("image", other).digest != pack("image", same).digest != pack("video", same).digest


def test_pieces_are_of_at_most_one_mebibyte() -> None:
    item = pack("image", {"pixels": np.arange(3 * (1 << 20) + 5, dtype=np.uint8)})
    assert [len(piece) for piece in item.chunks()] == [MAX_CHUNK_BYTES] * 3 + [5]


def test_float32_is_rounded_to_the_models_format_and_vectors_stay() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    numbers[0, :3] = 1 + 2**-8, 1 + 3 * 2**-8, -0.0  # halfway between neighbours: to the even one
    for dtype in ("bfloat16", "float16"):
        item = pack("image", {"pixels": numbers, "normalization": numbers[1]}, dtype)
        assert item.forms == (
            TensorForm("normalization", "float32", (9,)),
            TensorForm("pixels", dtype, (7, 9)),
        )
        got = torch.frombuffer(bytearray(item.parts[1]), dtype=getattr(torch, dtype)).view(7, 9)
        assert torch.equal(got, torch.from_numpy(numbers).to(getattr(torch, dtype)))
