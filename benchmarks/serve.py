"""Loads a running server and prints throughput, time to first token and inter-token latency.

    forebay serve demo/model &
    python benchmarks/serve.py --server 127.0.0.1:50051 --concurrency 8 --requests 64          closed loop
    python benchmarks/serve.py --server 127.0.0.1:50051 --rate 4 --requests 64                 open loop, Poisson arrivals

Prompts are random token ids that share no beginning, so that no prefix cache helps. In an open loop a request starts
when it is due, however late the server is: waiting counts (no coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import time

import grpc
from tqdm import tqdm

from forebay.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc, prompt_pb2, sampling_pb2


@dataclasses.dataclass(slots=True)
class Result:
    """One request: when it was due, and when each message with tokens came, in seconds of one clock."""

    due: float
    times: list[float] = dataclasses.field(default_factory=list)
    num_tokens: int = 0
    error: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="frontend to load (default: %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=64, help="how many requests to send (default: %(default)s)")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency", type=int, default=8, help="closed loop: requests in flight (default: %(default)s)"
    )
    loop.add_argument("--rate", type=float, help="open loop: requests per second, Poisson arrivals")
    parser.add_argument(
        "--prompt-len", default="128", metavar="N[,N…]", help="prompt tokens, one of these each (default: %(default)s)"
    )
    parser.add_argument(
        "--output-len", type=int, default=64, help="tokens to generate per request (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=2, help="requests sent before the clock starts (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and arrivals (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        report = asyncio.run(run(arguments))
    except grpc.RpcError as error:
        sys.exit(f"{arguments.server}: {error.code().name}: {error.details()}")
    print(
        json.dumps(report) if arguments.json else "\n".join(f"{name:34}{value:>12}" for name, value in report.items())
    )
    return 1 if report["failed requests"] else 0


async def run(arguments: argparse.Namespace) -> dict[str, float | int]:
    draw = random.Random(arguments.seed)
    lengths = [int(length) for length in arguments.prompt_len.split(",")]
    async with grpc.aio.insecure_channel(arguments.server) as channel:
        model = (await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())).model
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        def request() -> generation_pb2.StreamGenerateRequest:
            ids = [draw.randrange(model.vocab_size) for _ in range(draw.choice(lengths))]
            sampling = sampling_pb2.SamplingParams(
                max_tokens=arguments.output_len,
                temperature=arguments.temperature,
                ignore_eos=True,
                seed=draw.getrandbits(32),
            )
            prompt = prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=ids))
            return generation_pb2.StreamGenerateRequest(prompt=prompt, sampling=sampling)

        for _ in range(arguments.warmup):
            await send(stub, request(), Result(time.perf_counter()))
        started = time.perf_counter()
        with tqdm(total=arguments.requests, desc="requests", disable=not sys.stderr.isatty()) as bar:
            results = await (open_loop if arguments.rate else closed_loop)(arguments, stub, request, draw, bar)
        return summarize(results, time.perf_counter() - started)


async def closed_loop(arguments, stub, request, draw, bar) -> list[Result]:
    """`concurrency` clients, each sending its next request when the last one has ended."""
    results: list[Result] = []

    async def client() -> None:
        while len(results) < arguments.requests:
            results.append(result := Result(time.perf_counter()))
            await send(stub, request(), result)
            bar.update()

    await asyncio.gather(*(client() for _ in range(arguments.concurrency)))
    return results


async def open_loop(arguments, stub, request, draw, bar) -> list[Result]:
    """Requests at random times, `rate` a second on average, whatever has become of the earlier ones."""
    due, tasks, results = time.perf_counter(), [], []

    async def one(result: Result) -> None:
        await send(stub, request(), result)
        bar.update()

    for _ in range(arguments.requests):
        due += draw.expovariate(arguments.rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        results.append(Result(due))
        tasks.append(asyncio.ensure_future(one(results[-1])))
    await asyncio.gather(*tasks)
    return results


async def send(
    stub: generation_pb2_grpc.GenerationServiceStub, request: generation_pb2.StreamGenerateRequest, result: Result
) -> None:
    try:
        async for message in stub.StreamGenerate(request):
            count = sum(len(delta.token_ids) for delta in message.deltas)
            if count:
                result.times.append(time.perf_counter())
                result.num_tokens += count
    except grpc.RpcError as error:
        result.error = f"{error.code().name}: {error.details()}"


def summarize(results: list[Result], seconds: float) -> dict[str, float | int]:
    good = [result for result in results if not result.error]
    first = sorted(result.times[0] - result.due for result in good if result.times)
    gaps = sorted(b - a for result in good for a, b in zip(result.times, result.times[1:], strict=False))
    report: dict[str, float | int] = {
        "requests": len(good),
        "failed requests": len(results) - len(good),
        "seconds": round(seconds, 2),
        "requests/s": round(len(good) / seconds, 2),
        "output tokens/s": round(sum(result.num_tokens for result in good) / seconds, 1),
    }
    for name, values in (("time to first token", first), ("inter-token latency", gaps)):
        for share in (50, 95, 99):
            report[f"{name} p{share}, ms"] = round(1e3 * percentile(values, share), 2)
        report[f"{name} max, ms"] = round(1e3 * (values[-1] if values else 0.0), 2)
    for error in {result.error for result in results if result.error}:
        print(error, file=sys.stderr)
    return report


def percentile(values: list[float], share: int) -> float:
    """Of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, len(values) * share // 100)] if values else 0.0


if __name__ == "__main__":
    sys.exit(main())
