"""Layers that slide run any length in a few blocks, be it beside layers that see all, and never read what was given back."""

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


def check_bounds(engine: Engine) -> None:
    """Each group of each sequence holds its window behind the last full block, or all."""
    reach = engine.scheduler.reach
    for sequence in engine.scheduler.running:
        for blocks, num_passed, window in zip(sequence.blocks, sequence.num_passed_blocks, reach.windows, strict=True):
            most = len(blocks) if window is None else reach.num_blocks(window - 1) + 1
            assert len(blocks) - num_passed == min(len(blocks), most)


def generate(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    for key, prompt in enumerate(prompts):
        engine.add(Request(key, list(prompt), Sampling(max_tokens=num_tokens)))
    got: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            got[token.sequence.request.key].append(token.token_id)
        check_bounds(engine)
        poison_free_blocks(engine)
        engine.scheduler.check()
    return got


def prompts_and_continuations(name: str, folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of three lengths, and the 100 tokens that transformers generates after each."""
    model = tiny_checkpoint(case_of(name), folder)
    draw = random.Random(5)
    prompts = [[draw.randrange(3, 199) for _ in range(length)] for length in (120, 3, 61)]
    wanted = []
    for prompt in prompts:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        wanted.append(ids[0, len(prompt) :].tolist())
    return prompts, wanted


def in_torch(*tensors: torch.Tensor, scale: float, k_scale: float, **options) -> torch.Tensor:
    return padded.padded_attention(*tensors, scale=scale * k_scale, **options)


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("path", [cpu.paged_attention, in_torch, reference.paged_attention],
                         ids=["native", "torch", "reference"])  # fmt: skip
def test_long_sequences_run_in_the_blocks_of_their_windows(tmp_path: Path, monkeypatch, path, caching: bool) -> None:
    prompts, wanted = prompts_and_continuations("mistral-window", tmp_path)
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


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere2", "olmo3", "qwen2-windows-above", "qwen2-moe-windows"])
def test_layers_that_slide_hold_their_windows_beside_layers_that_see_all(
    tmp_path: Path, name: str, caching: bool
) -> None:
    prompts, wanted = prompts_and_continuations(name, tmp_path)
    roomy = engine_of(tmp_path, 1000)
    reach, memories = roomy.scheduler.reach, {id(t): t for state in roomy.runner.states for t in state.tensors}
    assert reach.windows[0] is None and None in reach.windows and reach.slides
    least = reach.most_held(256, 24)
    assert least < reach.num_groups * 64 * 0.8  # which whole tables would take
    num_bytes = sum(tensor.nbytes for tensor in memories.values()) // roomy.scheduler.pool.num_blocks * least
    engine = engine_of(tmp_path, 0, enable_prefix_caching=caching, kv_cache_memory_bytes=num_bytes)
    assert engine.scheduler.pool.num_blocks == least
    assert generate(engine, prompts, 100) == wanted
    assert engine.scheduler.ledger.num_preemptions > 0 and engine.scheduler.pool.num_used == 0
    if caching:
        longest = [[*prompts[0], *wanted[0]]]
        generate(engine, longest, 1)
        known = engine.scheduler.pool.prefix_cache.num_hit_tokens
        assert generate(engine, longest, 2) == [generate(engine_of(tmp_path, 1000), longest, 2)[0]]
        assert engine.scheduler.pool.prefix_cache.num_hit_tokens == known + 220 // BLOCK_SIZE * BLOCK_SIZE - BLOCK_SIZE


@pytest.mark.parametrize(("name", "options", "windows"), [
    ("mistral-window", {}, (WINDOW,)), ("mistral-full-wide-heads", {}, (None,)), ("llama", {}, (None,)),
    ("qwen2-windows-above", {}, (None, 8, 8)), ("qwen2-windows-above", {"max_model_len": 8}, (None,)),
    ("gemma2", {}, (None, WINDOW)), ("cohere2", {}, (None, WINDOW, WINDOW, WINDOW, WINDOW)),
])  # fmt: skip
def test_windows_shorter_than_sequences_bound_the_blocks(
    tmp_path: Path, name: str, options: dict[str, int], windows: tuple[int | None, ...]
) -> None:
    tiny_checkpoint(case_of(name), tmp_path)
    engine = engine_of(tmp_path, 400, **options)
    assert engine.scheduler.reach.windows == windows
