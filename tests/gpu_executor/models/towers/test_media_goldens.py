"""Multimodal models that transformers does not contain generate what their goldens say, from pictures and from embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model
from tests.golden.materialize import materialize
from tests.golden.media_cases import encode_case, media_golden, processor_of
from tests.gpu_executor.models.media_run import MediaRun

NAMES = (
    "H2OVLChatModel",
    "InternVLChatModel",
    "InternVLChatModel-qwen2",
    "NVLM_D_Model",
)


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    golden = media_golden(request.param)
    return golden, materialize(golden, tmp_path_factory.mktemp("media"))


def load(golden: dict[str, Any], folder: Path) -> Decoder:
    config = golden["files"]["config.json"]
    return load_model(folder, config, dtype=torch.float32, device=torch.device("cpu"), progress=False)


@pytest.mark.parametrize("chunk", [1 << 20, 7], ids=["whole", "chunks"])
def test_tokens_and_logprobs(checkpoint: tuple[dict[str, Any], Path], tmp_path: Path, chunk: int) -> None:
    golden, folder = checkpoint
    model = load(golden, folder)
    processor, tokenizer = processor_of(golden, tmp_path)
    for case in golden["cases"]:
        prompt = encode_case(processor, tokenizer, case)
        assert prompt.token_ids == case["input_ids"]
        token_ids, logprobs = MediaRun(model, prompt).greedy(case["max_tokens"], chunk)
        assert token_ids == case["token_ids"]
        for found, wanted in zip(logprobs, case["top_logprobs"], strict=True):
            for token_id, logprob in wanted:
                assert float(found[token_id]) == pytest.approx(logprob, abs=1e-3)
