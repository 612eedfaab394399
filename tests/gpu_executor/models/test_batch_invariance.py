"""With batch_invariant, a request gets the same tokens and the same bits of log-probabilities whatever runs beside it.

The checkpoints are made of near ties: tokens come in pairs whose rows of the head differ by a few units in the last place, so
that a sum that is rounded in another way takes the other token.
"""

from __future__ import annotations

import functools
import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from gpu_executor.sampler import TokenLogprobs
from gpu_executor.startup import build_engine
from kernels import native
from tests.golden.materialize import materialize, read_golden
from tests.gpu_executor.models.checkpoints import case_of, hub_tensors, tiny_checkpoint, write
from tests.gpu_executor.models.test_encoder_decoder import CASES as ENCODER_DECODERS
from tests.gpu_executor.models.test_encoder_decoder import START, bart_of

PROMPT_LENGTHS = (1, 5, 16, 33, 90, 120, 61, 2)
NUM_TOKENS = 6
# Grouped heads; windows and softcap; learned positions; ALiBi; experts with windows; latents with experts chosen by sigmoid;
# state spaces alone, and beside attention and experts; a gated shared expert; block-sparse; an encoder-decoder.
NAMES = (
    "llama", "gemma2", "gpt2", "bloom", "mixtral-window", "deepseek-v3", "mamba", "jamba", "qwen2-moe", "phi-3-small", "bart",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Token ids, of the likeliest first, and the bits of their log-probabilities, for each token of a request and of its prompt.
Results = dict[Any, list[tuple[list[int], bytes]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("near-ties")


@functools.cache
def checkpoint(name: str, dtype: str, root: Path) -> Path:
    """A tiny one whose tokens 2i and 2i + 1 nearly tie."""
    folder = root / f"{name}-{dtype}"
    folder.mkdir()
    if name == "phi-3-small":
        materialize(read_golden("Phi3SmallForCausalLM"), folder)
    elif name == "bart":
        case = ENCODER_DECODERS[0]
        write(folder, case, hub_tensors(bart_of(case), case))
    else:
        tiny_checkpoint(case_of(name), folder)
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    heads = [t for name, t in tensors.items() if "lm_head.weight" in name] or [
        t for t in tensors.values() if t.dim() == 2 and len(t) == vocab_size
    ]
    assert heads
    for rows in heads:
        odd = rows[1::2]
        odd.copy_(rows[: 2 * len(odd) : 2])
        odd[:, 3] *= 1 + 2 * torch.finfo(DTYPES[dtype]).eps
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    draw = random.Random(5)
    return tuple(tuple(draw.randrange(3, 199) for _ in range(length)) for length in PROMPT_LENGTHS)


def engine_of(folder: Path, dtype: str, budget: int, **options: Any) -> Engine:
    """With so many tokens in a step at most, prompts beside decoding sequences as well."""
    settings = {
        "dtype": dtype, "device": "cpu", "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 24, "num_threads": 2,
        "batch_invariant": True, "enable_prefix_caching": False, "max_num_batched_tokens": budget,
        "max_prefill_tokens_beside_decode": budget,
    }  # fmt: skip
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def generate(
    engine: Engine, wanted: Sequence[int], *, encodes: bool, after_step: Callable[[Engine], None] = lambda engine: None
) -> Results:
    """Tokens of prompts that run together, by prompt, with the bits of their log-probabilities; half of the prompts sample."""
    for key in wanted:
        ids = list(prompts()[key])
        inputs = {"encoder_token_ids": ids} if encodes else {}
        sampling = Sampling(
            max_tokens=NUM_TOKENS, logprobs=2, prompt_logprobs=1 if key % 2 == 1 and not encodes else None,
            temperature=0.8 * (key % 2), top_p=0.9, seed=key,
        )  # fmt: skip
        engine.add(Request(key, [START] if encodes else ids, sampling, **inputs))
    results: Results = {}
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for item in output.prompt_logprobs:
            results.setdefault(f"prompt {item.request.key}", []).extend(row(entry) for entry in item.entries)
        for token in output.tokens:
            results.setdefault(token.sequence.request.key, []).append(row(token.logprobs, token.token_id))
        after_step(engine)
    return results


def row(entry: TokenLogprobs, *token_ids: int) -> tuple[list[int], bytes]:
    return [*token_ids, *entry.top_ids], struct.pack(
        f"<{1 + len(entry.top_logprobs)}d", entry.logprob, *entry.top_logprobs
    )


@functools.cache
def alone(name: str, dtype: str, folder: Path) -> Results:
    """What each prompt gives with the engine for itself, computed at once."""
    engine, results = engine_of(folder, dtype, 256), {}
    for key in range(len(PROMPT_LENGTHS)):
        results |= generate(engine, [key], encodes=name == "bart")
    return results


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("budget", [3, 40, 512])
def test_a_request_gets_the_same_bits_in_any_batch_and_chunks(name: str, dtype: str, budget: int, root: Path) -> None:
    folder = checkpoint(name, dtype, root)
    together = generate(engine_of(folder, dtype, budget), range(len(PROMPT_LENGTHS)), encodes=name == "bart")
    assert together == alone(name, dtype, folder)


def test_a_preempted_request_gets_the_same_bits(name: str, dtype: str, root: Path) -> None:
    folder, draw = checkpoint(name, dtype, root), random.Random(3)

    def preempt(engine: Engine) -> None:
        running = [sequence for sequence in engine.scheduler.running if sequence.num_output_tokens]
        if running and draw.random() < 0.7:
            engine.scheduler.recompute(draw.choice(running))

    engine = engine_of(folder, dtype, 100)
    together = generate(engine, range(len(PROMPT_LENGTHS)), encodes=name == "bart", after_step=preempt)
    assert engine.scheduler.ledger.num_preemptions >= 4
    assert together == alone(name, dtype, folder)


def test_a_request_that_finds_its_prefix_gets_the_same_bits(name: str, dtype: str, root: Path) -> None:
    folder = checkpoint(name, dtype, root)
    engine = engine_of(folder, dtype, 100, enable_prefix_caching=True)
    keys = range(len(PROMPT_LENGTHS))
    first = generate(engine, keys, encodes=name == "bart")
    hits: list[int] = []
    again = generate(
        engine, keys, encodes=name == "bart",
        after_step=lambda engine: hits.extend(s.request.num_cached_tokens for s in engine.scheduler.running),
    )  # fmt: skip
    assert first == again == alone(name, dtype, folder)
    assert any(hits) or name == "bart"  # whose prompts are shorter than a block


@pytest.mark.skipif(native.lib is None, reason="torch alone may take one form for the sizes here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_batches_tell_without_the_mode(dtype: str, root: Path) -> None:
    folder = checkpoint("llama", dtype, root)
    engine = engine_of(folder, dtype, 512, batch_invariant=False)
    together = generate(engine, range(len(PROMPT_LENGTHS)), encodes=False)
    wanted = alone("llama", dtype, folder)
    assert together.keys() == wanted.keys() and together != wanted
    ids_together, ids_wanted = ([ids for key in wanted for ids, _ in found[key]] for found in (together, wanted))
    assert ids_together != ids_wanted  # near ties fell the other way


@pytest.mark.parametrize("name", ["llama", "mixtral-window", "jamba", "olmo"])
def test_torch_alone_gives_the_same_bits_too(
    name: str, dtype: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "codes", {})
    folder, keys = checkpoint(name, dtype, root), (1, 2, 3, 7)
    wanted: Results = {}
    for key in keys:
        wanted |= generate(engine_of(folder, dtype, 64), [key], encodes=False)
    for budget in (5, 64):
        assert generate(engine_of(folder, dtype, budget), keys, encodes=False) == wanted
