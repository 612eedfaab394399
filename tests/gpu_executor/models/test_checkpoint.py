"""Weight files that are broken, lie, or do not belong together are refused before anything is read, and are named."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from forebay.errors import CheckpointError
from gpu_executor.models.checkpoint import Checkpoint, read_header

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16), "c": torch.zeros(0, 5)}


def file_of(header: Any, data: bytes) -> bytes:
    """A safetensors file with any header; bytes are taken as they are."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_whole_file_gives_its_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert {t.name: (t.shape, t.dtype) for t in checkpoint.tensors.values()} == {
        "a": ((2, 3), "F32"), "b": ((4,), "F16"), "c": ((0, 5), "F32"),
    }  # fmt: skip
    read = dict(checkpoint.read(["b", "a"]))
    assert torch.equal(read["a"], TENSORS["a"]) and torch.equal(read["b"], TENSORS["b"])
    assert set(read) == {"a", "b"}


def test_a_file_cut_anywhere_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors is not a whole safetensors file.*download it again"
        ):
            Checkpoint(tmp_path)


def test_a_cut_in_the_data_names_the_tensor(tmp_path: Path) -> None:
    save_file({"first": torch.ones(4), "second": torch.ones(8)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="tensor second ends at byte"):
        Checkpoint(tmp_path)


LIES: dict[str, tuple[bytes, str]] = {
    "header-longer-than-the-file": (struct.pack("<Q", 1 << 40) + b"{}", "header claims 1,099,511,627,776 bytes"),
    "header-of-all-ones": (b"\xff" * 16, "header claims"),
    "not-json": (file_of(b"{nope", b""), "header is broken"),
    "not-utf8": (file_of(b'{"\xff\xfe": 1}', b""), "header is broken"),
    "nested-without-end": (file_of(b"[" * 100_000, b""), "header is broken"),
    "not-an-object": (file_of([1], b""), "header is not a JSON object"),
    "twice": (file_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', b"0000"), "a stands in it twice"),
    "no-dtype": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"0000"), "entry of tensor a is broken"),
    "an-entry-that-is-text": (file_of({"a": "x"}, b""), "entry of tensor a is broken"),
    "unknown-dtype": (file_of({"a": entry([1], 0, 4, "F33")}, b"0000"), "tensor a is of the unknown dtype 'F33'"),
    "negative-size": (file_of({"a": entry([-1, -1], 0, 4)}, b"0000"), "entry of tensor a is broken"),
    "size-that-is-text": (file_of({"a": entry(["1"], 0, 4)}, b"0000"), "entry of tensor a is broken"),
    "offsets-of-three": (file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"0000"), "tensor a is broken"),
    "shape-larger-than-its-bytes": (file_of({"a": entry([2], 0, 4)}, b"0000"), "tensor a has bytes 0 to 4 for shape"),
    "huge-shape": (file_of({"a": entry([1 << 62, 4], 0, 4)}, b"0000"), "tensor a has bytes 0 to 4"),
    "past-the-end": (file_of({"a": entry([100], 0, 400)}, b"0000"), "tensor a ends at byte"),
    "overlap": (file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"0" * 12), "tensor b has bytes 4 to 12"),
    "gap": (file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12), "tensor b has bytes 8 to 12"),
    "same-place": (file_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0000"), "tensor b has bytes 0 to 4"),
    "bytes-behind": (file_of({"a": entry([1], 0, 4)}, b"0" * 9), "5 bytes follow the last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    content, message = LIES[lie]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        list(read_header(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.safetensors is not a whole safetensors file")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 170), value=st.integers(0, 255))
def test_a_flipped_byte_gives_the_error_or_tensors_that_lie_in_the_file(
    position: int, value: int, tmp_path_factory
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        stored = list(read_header(path))
    except CheckpointError as error:
        assert "flipped.safetensors" in str(error)
    else:
        assert all(tensor.path == path for tensor in stored)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards with their index."""
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": 1, "b": 1, "c": 2})
    return tmp_path


def write_index(folder: Path, shards: dict[str, int]) -> None:
    weight_map = {name: f"model-{shard:05}-of-00002.safetensors" for name, shard in shards.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_as_one(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    assert [name for name, _ in checkpoint.read(["c", "a", "b"])] == ["a", "b", "c"]


def _unlink(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def _add_shard(folder: Path) -> None:
    save_file({"d": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")


def _duplicate(folder: Path) -> None:
    save_file({"c": torch.ones(3), "a": torch.ones(1)}, folder / "model-00002-of-00002.safetensors")


SHARD_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing-shard": (_unlink, "names model-00002-of-00002.safetensors for 1 tensors, but that file is missing"),
    "extra-shard": (_add_shard, "model-00003-of-00003.safetensors lies beside the shards of model.safetensors.index.json"),
    "duplicate-tensor": (_duplicate, "model-00002-of-00002.safetensors holds tensor a, which the index does not put there"),
    "tensor-not-in-its-shard": (lambda f: write_index(f, {"a": 1, "b": 1, "c": 2, "d": 2}),
        "model-00002-of-00002.safetensors lacks tensor d, which the index puts there"),
    "tensor-not-in-the-index": (lambda f: write_index(f, {"a": 1, "c": 2}),
        "model-00001-of-00002.safetensors holds tensor b, which the index does not put there"),
    "index-that-is-no-json": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "is not a readable index"),
    "index-without-map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is not a readable index"),
    "index-out-of-the-folder": (lambda f: (f / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})), "which is not a plain file name"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_an_index_and_its_shards_must_be_equal(sharded: Path, fault: str) -> None:
    change, message = SHARD_FAULTS[fault]
    change(sharded)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(sharded)
    assert message in str(caught.value)


def test_the_same_weights_in_another_layout_are_left_alone(sharded: Path) -> None:
    """Mistral's repositories hold consolidated files beside the shards."""
    save_file({"tok_embeddings.weight": torch.ones(1)}, sharded / "consolidated-00001-of-00001.safetensors")
    save_file({"tok_embeddings.weight": torch.ones(1)}, sharded / "consolidated.safetensors")
    assert set(Checkpoint(sharded).tensors) == {"a", "b", "c"}


def test_a_tensor_in_two_files_without_an_index_is_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"tensor a is in both x\.safetensors and y\.safetensors"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no weights: expected model\.safetensors.*--load-format dummy"):
        Checkpoint(tmp_path)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"a": _Payload()}, protocol=2)), "pytorch_model.bin cannot be read"),
        (lambda path: torch.save({"a": _Payload()}, path), "pytorch_model.bin cannot be read"),
        (lambda path: path.write_bytes(b"PK\x03\x04 not a zip"), "pytorch_model.bin cannot be read"),
        (lambda path: path.write_bytes(b""), "pytorch_model.bin cannot be read"),
        (lambda path: torch.save(torch.ones(1), path), "pytorch_model.bin holds a Tensor, not tensors by name"),
        (lambda path: torch.save({"model": {"a": torch.ones(1)}}, path), "holds a dict as 'model', not a tensor"),
    ],
    ids=["pickle", "pickle-in-zip", "not-a-zip", "empty", "one-tensor", "nested"],
)  # fmt: skip
def test_a_pickle_executes_nothing_and_holds_tensors_alone(
    tmp_path: Path, write: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "executed").exists()
