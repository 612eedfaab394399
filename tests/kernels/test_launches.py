"""What a public call launches follows from shapes alone: nothing is read back from a GPU, so that a CUDA graph can hold it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kernels.block_sparse_attention import block_sparse_attention
from kernels.mla_attention import mla_attention
from kernels.paged_attention import paged_attention
from kernels.rope_kv_write import rope_kv_write
from kernels.rope_latent_write import rope_latent_write
from tests.kernels.test_rope_kv_write import rope_table

READS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__iter__")
NUM_SEQS, WIDTH, PAGE = 3, 40, 16

# Calls on tensors of the same shapes, whatever the rows and lengths of the three sequences are.
CALLS: dict[str, Callable[..., Any]] = {
    "paged_attention": lambda x, starts, lengths: paged_attention(
        x["q"], *x["kv"], x["table"], starts, lengths, scale=0.1, window=30, sinks=x["sinks"]
    ),
    "mla_attention": lambda x, starts, lengths: mla_attention(
        x["q"], x["kv"][0][:, 0], x["table"], starts, lengths, kv_rank=48, scale=0.1
    ),
    "block_sparse_attention": lambda x, starts, lengths: block_sparse_attention(
        x["q"], *x["kv"], x["table"], starts, lengths,
        scale=0.1, sparse_block_size=16, num_local_blocks=2, stride=3, head_step=1,
    ),
    "rope_kv_write": lambda x, starts, lengths: rope_kv_write(
        x["q"], x["q"][:, :2], x["q"][:, 2:4], x["cos_sin"], x["ids"], *x["kv"], x["ids"] - 1
    ),
    "rope_latent_write": lambda x, starts, lengths: rope_latent_write(
        x["q"][..., :16], x["q"][:, 0, :16], x["q"][:, 0, :48], x["cos_sin"][:, :16], x["ids"], x["kv"][0][:, 0], x["ids"] - 1
    ),
}  # fmt: skip


def inputs(device: torch.device) -> dict[str, Any]:
    return {
        "q": torch.zeros(6, 8, 64, device=device),
        "kv": [torch.zeros(NUM_SEQS * WIDTH, 2, PAGE, 64, device=device) for _ in range(2)],
        "table": torch.arange(NUM_SEQS * WIDTH, dtype=torch.int32, device=device).view(NUM_SEQS, WIDTH),
        "sinks": torch.zeros(8, device=device), "cos_sin": rope_table(9, 64).to(device),
        "ids": torch.arange(6, device=device),
    }  # fmt: skip


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Any]]:
    """What the interpreter is to run, instead of its running: names, grids and all arguments, of tensors the shapes."""
    from triton.runtime import interpreter

    seen: list[Any] = []

    def noting(executor: Any, *args: Any, **kwargs: Any) -> None:
        passed = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in (*args, *kwargs.values())]
        seen.append((executor.fn.__name__, executor.grid, passed))

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a tensor is read on the host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", noting)
        for name in READS:
            patch.setattr(torch.Tensor, name, refused)
        yield seen


BATCHES = {"decode": ([0, 1, 2, 6], [1, 400, 8]), "ragged": ([0, 0, 6, 6], [9, 640, 3])}


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU a graph shows it")
@pytest.mark.parametrize("name", CALLS)
def test_launches_follow_from_shapes(name: str, triton_device: torch.device) -> None:
    x = inputs(triton_device)
    found = []
    for batch in BATCHES.values():
        starts, lengths = (torch.tensor(column, dtype=torch.int32, device=triton_device) for column in batch)
        with recorded_launches() as launches:
            CALLS[name](x, starts, lengths)
        found.append(launches)
    assert found[0] == found[1]
    assert found[0][0][0] == f"{name}_kernel"


def test_a_read_on_the_host_would_be_noticed(triton_device: torch.device) -> None:
    tensor = torch.tensor([3], device=triton_device)
    for read in (bool, int, range, list, lambda t: t.tolist(), lambda t: t.cpu(), lambda t: t.nonzero()):
        with recorded_launches(), pytest.raises(AssertionError, match="read on the host"):
            read(tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CALLS)
def test_a_cuda_graph_serves_other_lengths(name: str, triton_device: torch.device) -> None:
    x = inputs(triton_device)
    x["q"].normal_()
    for cache in x["kv"]:
        cache.normal_()
    starts, lengths = (torch.tensor(column, dtype=torch.int32, device="cuda") for column in BATCHES["decode"])
    CALLS[name](x, starts, lengths)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = CALLS[name](x, starts, lengths)
    for batch in BATCHES.values():
        for tensor, column in zip((starts, lengths), batch):
            tensor.copy_(torch.tensor(column))
        graph.replay()
        captured = out.clone()
        torch.testing.assert_close(captured, CALLS[name](x, starts, lengths))
