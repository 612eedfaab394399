"""One architecture of each mixer generates with the Triton kernels what it generates without them.

That in turn is what transformers generates, or a golden file, by the other tests here. Where there is no GPU, Triton's
interpreter runs the kernels. The whole suite does so too, in hours: FOREBAY_KERNELS=triton pytest tests/gpu_executor.
"""

from __future__ import annotations

import functools
import importlib
import random
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_executor.config import ExecutorConfig
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from kernels import triton_path
from tests.golden.materialize import materialize, read_golden
from tests.gpu_executor.models.checkpoints import case_of, hub_tensors, tiny_checkpoint, write
from tests.gpu_executor.models.test_encoder_decoder import CASES as ENCODER_DECODERS
from tests.gpu_executor.models.test_encoder_decoder import START, bart_of

PROMPT_LENGTHS = (3, 17, 40)
SCANNED_LENGTHS = (2, 6)  # the interpreter takes a third of a second for a token of a state-space layer
NUM_TOKENS = 3
ATTENTION, EXPERTS = {"paged_attention", "rope_kv_write"}, {"moe_routing", "moe_experts"}
# What the model must have run in Triton.
OPERATIONS = {
    "llama": ATTENTION | {"rms_norm", "activation"},
    "gemma2": ATTENTION | {"rms_norm", "activation"},  # window and softcap
    "bloom": ATTENTION | {"layer_norm"},  # ALiBi
    "mixtral-window": ATTENTION | EXPERTS,
    "deepseek-v2-lite": {"mla_attention", "rope_latent_write"} | EXPERTS,
    "jamba": ATTENTION | EXPERTS | {"selective_scan", "causal_conv"},
    "phi-3-small": ATTENTION | {"block_sparse_attention"},
    "bart": ATTENTION | {"layer_norm"},  # cross attention
}


def checkpoint(name: str, folder: Path) -> Path:
    """A tiny one, written to the folder."""
    if name == "phi-3-small":
        return materialize(read_golden("Phi3SmallForCausalLM"), folder)
    if name == "bart":
        case = ENCODER_DECODERS[0]
        write(folder, case, hub_tensors(bart_of(case), case))
    else:
        tiny_checkpoint(case_of(name), folder)
    return folder


def generate(
    folder: Path, device: str, prompt_lengths: Sequence[int], *, encodes: bool
) -> dict[int, list[tuple[int, float]]]:
    """Tokens and their log-probabilities of some prompts, together, in chunks of 32 tokens."""
    config = ExecutorConfig(
        model=str(folder), dtype="float32", device=device, kv_cache_memory_bytes=1 << 23, max_num_seqs=4, num_threads=1,
        max_num_batched_tokens=32,
    )  # fmt: skip
    engine = build_engine(config, progress=False)[0]
    draw = random.Random(5)
    for key, length in enumerate(prompt_lengths):
        ids = [draw.randrange(3, 199) for _ in range(length)]
        inputs = {"encoder_token_ids": ids} if encodes else {}
        prompt = [START] if encodes else ids
        engine.add(Request(key, prompt, Sampling(max_tokens=NUM_TOKENS, logprobs=0), **inputs))
    tokens: dict[int, list[tuple[int, float]]] = {}
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            tokens.setdefault(token.sequence.request.key, []).append((token.token_id, token.logprobs.logprob))
    return tokens


def watch(monkeypatch: pytest.MonkeyPatch, operation: str, called: set[str]) -> None:
    """Notes calls of what the operation's Triton module offers."""
    module = importlib.import_module(f"kernels.{operation}.kernel")

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(operation)
            return function(*args, **kwargs)

        return call

    for name, value in vars(module).copy().items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and not name.startswith("_"):
            monkeypatch.setattr(module, name, noting(value))


@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_generates_the_same(
    name: str, tmp_path: Path, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(name, tmp_path)
    lengths = SCANNED_LENGTHS if "selective_scan" in OPERATIONS[name] else PROMPT_LENGTHS
    with monkeypatch.context() as without:
        without.setattr(triton_path, "on_cpu", False)
        expected = generate(folder, "cpu", lengths, encodes=name == "bart")
    called: set[str] = set()
    for operation in OPERATIONS[name]:
        watch(monkeypatch, operation, called)
    actual = generate(folder, triton_device.type, lengths, encodes=name == "bart")
    assert called == OPERATIONS[name]
    assert actual.keys() == expected.keys() == set(range(len(lengths)))
    for key, tokens in expected.items():
        assert [token for token, _ in actual[key]] == [token for token, _ in tokens]
        assert [logprob for _, logprob in actual[key]] == pytest.approx([logprob for _, logprob in tokens], abs=1e-3)
