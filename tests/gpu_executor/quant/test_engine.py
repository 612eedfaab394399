"""An engine generates from a quantized checkpoint what it generates from the plain one, also with the kernels of a GPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from gpu_executor import startup
from gpu_executor.models.loader import load_model
from kernels import triton_path
from tests.gpu_executor.models.checkpoints import case_of
from tests.gpu_executor.models.test_triton_equivalence import PROMPT_LENGTHS, generate, watch
from tests.gpu_executor.quant.quantizers import scheme_of
from tests.gpu_executor.quant.test_loading import write_both


@pytest.mark.parametrize("name", ["gptq-v2-act-order", "fp8-blocks"])
def test_an_engine_generates_the_same(
    name: str, tmp_path: Path, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_both(tmp_path, case_of("qwen2"), scheme_of(name))
    with monkeypatch.context() as without:
        without.setattr(triton_path, "on_cpu", False)
        expected = generate(written.plain, "cpu", PROMPT_LENGTHS, encodes=False)
        unpacked = generate(written.folder, "cpu", PROMPT_LENGTHS, encodes=False)
    called: set[str] = set()
    watch(monkeypatch, "quantized_linear", called)
    monkeypatch.setattr(startup, "load_model", functools.partial(load_model, keep_quantized=True))
    kept = generate(written.folder, triton_device.type, PROMPT_LENGTHS, encodes=False)
    assert called == {"quantized_linear"}
    for actual in (unpacked, kept):
        assert actual.keys() == expected.keys() == set(range(len(PROMPT_LENGTHS)))
        for key, tokens in expected.items():
            assert [token for token, _ in actual[key]] == [token for token, _ in tokens]
            assert [logprob for _, logprob in actual[key]] == pytest.approx(
                [logprob for _, logprob in tokens], abs=1e-3
            )
