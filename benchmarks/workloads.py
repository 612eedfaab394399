"""Owns what the engine benchmarks measure, through an interface so small that every engine has it.

An engine has `add(request_id, token_ids, max_tokens)` and `step() -> list of request ids that got a token`, greedy,
end of sequence ignored.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol


class SteppedEngine(Protocol):
    """What a workload needs of an engine."""

    vocab_size: int

    def add(self, request_id: str, token_ids: list[int], max_tokens: int) -> None: ...

    def step(self) -> list[str]: ...


def prompt(engine: SteppedEngine, length: int, *seed: object) -> list[int]:
    """Random token ids, the same in every process; another seed shares no beginning, so that no prefix cache helps."""
    draw = random.Random(repr(seed))
    return [draw.randrange(3, engine.vocab_size - 300) for _ in range(length)]


def run(engine: SteppedEngine, prompts: list[list[int]], max_tokens: int) -> float:
    """Seconds until all prompts have max_tokens tokens."""
    _counter[0] += 1
    left = {f"{_counter[0]}-{i}": max_tokens for i in range(len(prompts))}
    started = time.perf_counter()
    for request_id, token_ids in zip(left, prompts, strict=True):
        engine.add(request_id, token_ids, max_tokens)
    while left:
        for request_id in engine.step():
            left[request_id] -= 1
            if not left[request_id]:
                del left[request_id]
    return time.perf_counter() - started


_counter = [0]


def decode_rate(
    engine: SteppedEngine, batch: int, *, prompt_len: int = 128, num_tokens: int = 64, seed: int = 0
) -> float:
    """Tokens per second of `batch` sequences beyond their first token: (T64 - T1) removes what the prompts cost."""
    times = []
    for count in (1, num_tokens):
        prompts = [prompt(engine, prompt_len, seed, batch, count, i) for i in range(batch)]
        times.append(run(engine, prompts, count))
    return batch * (num_tokens - 1) / (times[1] - times[0])


def prefill_rate(engine: SteppedEngine, length: int = 1024, *, seed: int = 0) -> float:
    """Prompt tokens per second of one prompt."""
    return length / run(engine, [prompt(engine, length, seed, "prefill")], 1)


def longest_gap(
    engine: SteppedEngine, *, streams: int = 8, arrivals: int = 3, length: int = 1024, seed: int = 0
) -> tuple[float, float]:
    """(longest, median) seconds between two tokens of a running stream while prompts of `length` arrive one by one."""
    _counter[0] += 1
    names = [f"{_counter[0]}-s{i}" for i in range(streams)]
    for i, name in enumerate(names):
        engine.add(name, prompt(engine, 32, seed, "stream", i), 1 << 12)
    last: dict[str, float] = {}
    while len(last) < streams:
        last |= dict.fromkeys(engine.step(), time.perf_counter())
    for _ in range(4):
        engine.step()
    gaps: list[float] = []
    last = dict.fromkeys(names, time.perf_counter())
    for arrival in range(arrivals):
        newcomer = f"{_counter[0]}-p{arrival}"
        engine.add(newcomer, prompt(engine, length, seed, "arrival", arrival), 2)
        due = 2
        while due:
            got = engine.step()
            now = time.perf_counter()
            for name in got:
                if name in last:
                    gaps.append(now - last[name])
                    last[name] = now
                elif name == newcomer:
                    due -= 1
    engine.abort(names)
    gaps.sort()
    return gaps[-1], gaps[len(gaps) // 2]


def best_of(measure: Callable[[int], float], repeats: int) -> list[float]:
    """All repeats of a measurement, each with a seed of its own."""
    return [measure(seed) for seed in range(repeats)]
