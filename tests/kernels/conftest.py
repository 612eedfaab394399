"""Every kernel test runs on memory full of NaN, and on each path that can serve the CPU."""

from __future__ import annotations

import pytest
import torch

from kernels import native

_BUILT = native.lib is not None


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch hands out uninitialised holds NaN, so that an element nobody wrote shows."""

    def poisoned(allocate):
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on the compiled kernels and on the torch path."""
    if request.param == "torch":
        monkeypatch.setattr(native, "codes", {})
    elif not _BUILT:
        pytest.skip("the native kernels are not built, or this CPU has no AVX-512")
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(
    params=[torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])], ids=str
)
def triton_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """bfloat16 on a GPU alone: the interpreter computes with it after widening only, and rounds it by cutting off."""
    return request.param
