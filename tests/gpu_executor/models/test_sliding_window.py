"""A model that slides in every layer runs any length in a few blocks, and never reads what it has given back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import kernels.paged_attention
from forebay.errors import InvalidRequest
from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from kernels.paged_attention import cpu, padded, reference
from tests.gpu_executor.models.checkpoints import case_of, tiny_checkpoint

BLOCK_SIZE = 4
BLOCK_BYTES = 2 * BLOCK_SIZE * 2 * 8 * 4 * 3  # keys and values, tokens, kv heads, head size, float32, layers
WINDOW = 9


def engine_of(folder: Path, num_blocks: int, **options) -> Engine:
    settings = {
        "dtype": "float32", "max_num_seqs": 8, "num_threads": 1, "block_size": BLOCK_SIZE, "max_num_batched_tokens": 24,
        "kv_cache_memory_bytes": num_blocks * BLOCK_BYTES,
    }  # fmt: skip
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def poison_free_blocks(engine: Engine) -> int:
    """Fills the blocks that nobody holds and nobody can find with NaN; how many they are."""
    pool = engine.scheduler.pool
    held = {block for sequence in engine.scheduler.running for block in sequence.held_blocks}
    free = [
        b for b in range(pool.num_blocks) if b not in held and not (pool.prefix_cache and pool.prefix_cache.knows(b))
    ]
    for state in engine.runner.states:
        for tensor in state.tensors:
            tensor[free] = torch.nan
    return len(free)


def generate(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    for key, prompt in enumerate(prompts):
        engine.add(Request(key, list(prompt), Sampling(max_tokens=num_tokens)))
    got: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            got[token.sequence.request.key].append(token.token_id)
        poison_free_blocks(engine)
        engine.scheduler.check()
    return got


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("path", [cpu.paged_attention, padded.padded_attention, reference.paged_attention],
                         ids=["native", "torch", "reference"])  # fmt: skip
def test_long_sequences_run_in_the_blocks_of_their_windows(tmp_path: Path, monkeypatch, path, caching: bool) -> None:
    model = tiny_checkpoint(case_of("mistral-window"), tmp_path)
    draw = random.Random(5)
    prompts = [[draw.randrange(3, 199) for _ in range(length)] for length in (120, 3, 61)]
    wanted = []
    for prompt in prompts:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        wanted.append(ids[0, len(prompt) :].tolist())
    monkeypatch.setattr(kernels.paged_attention.cpu, "paged_attention", path)
    engine = engine_of(tmp_path, num_blocks=14, enable_prefix_caching=caching)
    assert generate(engine, prompts, 100) == wanted
    assert engine.scheduler.pool.num_used == 0
    if caching:
        queried = [[*prompts[0], *wanted[0]]]
        ends = generate(engine, queried, 1)
        assert engine.scheduler.pool.prefix_cache.num_hit_tokens > 0 and len(ends[0]) == 1


def test_the_cache_need_not_hold_the_longest_sequence_but_its_window_and_a_chunk(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("mistral-window"), tmp_path)
    least = (WINDOW - 1) // BLOCK_SIZE + 2 + 23 // BLOCK_SIZE
    engine = engine_of(tmp_path, least)
    assert engine.max_model_len == 256
    engine.check(Request("longest", [5] * 200, Sampling(max_tokens=56)))
    with pytest.raises(ValueError, match="--max-num-batched-tokens"):
        engine_of(tmp_path, least - 1)
    engine.scheduler.pool.num_blocks -= 1
    with pytest.raises(InvalidRequest, match=f"up to {least} blocks of KV at once"):
        engine.check(Request("longest", [5] * 200, Sampling(max_tokens=56)))


@pytest.mark.parametrize(("name", "window"), [
    ("mistral-window", WINDOW), ("mistral-full-wide-heads", None), ("qwen2-windows-above", None), ("llama", None)])  # fmt: skip
def test_only_a_window_of_all_layers_bounds_the_blocks(tmp_path: Path, name: str, window: int | None) -> None:
    tiny_checkpoint(case_of(name), tmp_path)
    engine = engine_of(tmp_path, 400)
    assert engine.scheduler.reach.windows == (window,)
