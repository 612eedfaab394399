"""Multimodal models that transformers does not contain generate what their goldens say, in any chunks of their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_executor.engine import Engine
from gpu_executor.media import MediaInput
from gpu_executor.request import Request, Sampling
from preprocess.media_item import EncodedPrompt
from tests.golden.materialize import FOLDER, materialize, read_golden
from tests.golden.media_cases import encode_case, processor_of
from tests.gpu_executor.models.test_golden import engine_of

GOLDENS = {path.stem: read_golden(f"media/{path.stem}") for path in sorted((FOLDER / "media").glob("*.json"))}
GENERATING = [
    name
    for name, golden in GOLDENS.items()
    if golden["task"] == "generate" and all("prompt" in case for case in golden["cases"])
]


@pytest.fixture(scope="module", params=GENERATING)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    golden = GOLDENS[request.param]
    return golden, materialize(golden, tmp_path_factory.mktemp("media"))


def encode_all(golden: dict[str, Any], folder: Path) -> list[EncodedPrompt]:
    """Each case's prompt, as its checkpoint's processor encodes it."""
    processor, tokenizer = processor_of(golden, folder)
    prompts = [encode_case(processor, tokenizer, case) for case in golden["cases"]]
    assert [prompt.token_ids for prompt in prompts] == [case["input_ids"] for case in golden["cases"]]
    return prompts


def request_of(key: int, prompt: EncodedPrompt, sampling: Sampling | None, **options: Any) -> Request:
    media = [
        MediaInput.of_arrays(placed.item.modality, placed.item.digest, placed.spans, placed.item.tensors)
        for placed in prompt.media
    ]
    return Request(key, list(prompt.token_ids), sampling, media=media, positions=prompt.positions, **options)


def check(golden: dict[str, Any], prompts: list[EncodedPrompt], engine: Engine) -> None:
    """Runs all cases in one batch and compares ids and log-probabilities."""
    for key, (case, prompt) in enumerate(zip(golden["cases"], prompts, strict=True)):
        engine.add(request_of(key, prompt, Sampling(max_tokens=case["max_tokens"], logprobs=5)))
    got: dict[int, list[tuple[int, dict[int, float]]]] = {key: [] for key in range(len(prompts))}
    while engine.has_work:
        for token in engine.step().tokens:
            top = dict(zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True))
            got[token.sequence.request.key].append((token.token_id, top))
    for case, tokens in zip(golden["cases"], got.values(), strict=True):
        assert [token_id for token_id, _ in tokens] == case["token_ids"], case["name"]
        for (_, top), wanted in zip(tokens, case["top_logprobs"], strict=True):
            for token_id, logprob in wanted:
                if token_id in top:  # the fifth and the sixth may lie closer than the tolerance
                    assert top[token_id] == pytest.approx(logprob, abs=1e-3)
            assert len(top.keys() & {token_id for token_id, _ in wanted}) >= len(wanted) - 1


def test_in_small_chunks_and_with_a_warm_prefix_cache(checkpoint: tuple[dict[str, Any], Path]) -> None:
    golden, folder = checkpoint
    prompts = encode_all(golden, folder)
    sizes = {"max_num_batched_tokens": 30, "max_prefill_tokens_beside_decode": 7, "block_size": 4}
    engine = engine_of(folder, kv_cache_memory_bytes=160 << 20, **sizes)
    for _ in range(2):
        check(golden, prompts, engine)
    engine.scheduler.check()
