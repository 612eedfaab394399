"""Every architecture generates what transformers generates: greedy ids equal, log-probabilities within 1e-3.

Alone, in a mixed batch, in chunks, after preemption, and with a warm prefix cache.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import Case, all_cases, tiny_checkpoint

NUM_TOKENS = 10
LENGTHS = (1, 2, 15, 16, 17, 33, 50, 7, 64, 3, 21, 90)


@dataclasses.dataclass
class Reference:
    """A checkpoint folder and what transformers generates from it."""

    case: Case
    folder: str
    prompts: list[list[int]]
    token_ids: list[list[int]]
    logprobs: list[list[float]]


@pytest.fixture(scope="module", params=all_cases(), ids=str)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    model = tiny_checkpoint(case, folder)
    draw = random.Random(3)
    longest = min(case.max_model_len or 256, 128) - NUM_TOKENS
    lengths = [min(max(length, case.least_prompt), longest) for length in LENGTHS]
    prompts = [[draw.randrange(3, 199) for _ in range(length)] for length in lengths]
    token_ids, logprobs = [], []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        ids = out.sequences[0, len(prompt) :].tolist()
        steps = torch.stack(out.logits)[:, 0].log_softmax(-1)
        token_ids.append(ids)
        logprobs.append(steps[range(len(ids)), ids].tolist())
        best = steps.topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-4, "a tie: the test would compare noise"
    return Reference(case, str(folder), prompts, token_ids, logprobs)


def engine_of(reference: Reference, **options) -> Engine:
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "max_num_seqs": 40, "num_threads": 1}
    settings["max_model_len"] = reference.case.max_model_len
    return build_engine(ExecutorConfig(model=reference.folder, **(settings | options)), progress=False)[0]


def generate(
    engine: Engine, prompts: list[list[int]], *, preempt_every: int = 0
) -> list[tuple[list[int], list[float]]]:
    """(ids, log-probabilities) of each prompt, all in one batch."""
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    sampling = Sampling(max_tokens=NUM_TOKENS, logprobs=0)
    for key, prompt in enumerate(prompts):
        engine.add(Request(key, list(prompt), sampling))
    for step in range(2000):
        if not engine.has_work:
            return results
        if preempt_every and step % preempt_every == preempt_every - 1:
            engine.scheduler.preempt_all()
        for token in engine.step().tokens:
            ids, logprobs = results[token.sequence.request.key]
            ids.append(token.token_id)
            logprobs.append(token.logprobs.logprob)
    raise AssertionError("no end")


def check(reference: Reference, results: list[tuple[list[int], list[float]]], indices: list[int] | None = None) -> None:
    for index, (ids, logprobs) in zip(indices or range(len(results)), results, strict=True):
        assert ids == reference.token_ids[index], f"prompt of {len(reference.prompts[index])} tokens"
        assert logprobs == pytest.approx(reference.logprobs[index], abs=1e-3)


def test_alone(reference: Reference) -> None:
    engine = engine_of(reference)
    for index, prompt in enumerate(reference.prompts):
        check(reference, generate(engine, [prompt]), [index])


def test_in_a_mixed_batch_of_32(reference: Reference) -> None:
    indices = [i % len(reference.prompts) for i in range(32)]
    random.Random(0).shuffle(indices)
    engine = engine_of(reference, enable_prefix_caching=False)
    check(reference, generate(engine, [reference.prompts[i] for i in indices]), indices)


@pytest.mark.parametrize(("budget", "block_size"), [(40, 16), (41, 8), (64, 5), (57, 1)])
def test_in_chunks_of_any_size(reference: Reference, budget: int, block_size: int) -> None:
    engine = engine_of(
        reference, max_num_batched_tokens=budget, max_prefill_tokens_beside_decode=budget // 5, block_size=block_size
    )
    check(reference, generate(engine, reference.prompts))
    engine.scheduler.check()


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_after_forced_preemption(reference: Reference, caching: bool) -> None:
    engine = engine_of(reference, enable_prefix_caching=caching, max_num_batched_tokens=128)
    check(reference, generate(engine, reference.prompts, preempt_every=7))
    assert engine.scheduler.ledger.num_preemptions > 10


def test_when_memory_runs_out(reference: Reference) -> None:
    engine = engine_of(reference, max_model_len=128, block_size=4, max_num_batched_tokens=40)
    pool = engine.scheduler.pool
    held = pool.allocate(pool.num_blocks - engine.scheduler.most_blocks(128) - 1)
    check(reference, generate(engine, reference.prompts))
    assert engine.scheduler.ledger.num_preemptions > 0
    pool.release(held)


def test_with_a_warm_prefix_cache(reference: Reference) -> None:
    engine = engine_of(reference)
    check(reference, generate(engine, reference.prompts))
    check(reference, generate(engine, reference.prompts))
    assert engine.scheduler.pool.prefix_cache.num_hit_tokens > 100
