"""Measures the wire between executor and frontend: messages and microseconds per token, without a model.

    python benchmarks/wire.py --sequences 1,32,256

A server process sends what engine steps would give, through the executor's own outbox and frames; a client process
reads it over one Session on loopback. For comparison, the same tokens with one message each.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sequences", default="1,8,32,256", help="sequences that get a token in each step (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=3000, help="engine steps (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"{'':14}{'frames of a step':>46}{'a message per token':>42}")
    print(
        f"{'sequences':>9}{'messages':>10}{'tokens/s':>14}{'us/token':>10}{'us/step':>10}"
        + f"{'messages':>16}{'tokens/s':>14}{'us/token':>10}"
    )
    for count in map(int, arguments.sequences.split(",")):
        cells = []
        for per_token in (False, True):
            steps = max(20, min(arguments.steps, 60_000 // count)) if per_token else arguments.steps
            messages, seconds, cpu = measure(count, steps, per_token)
            tokens = steps * count
            cells += [f"{messages:>{16 if per_token else 10},}{tokens / seconds:>14,.0f}{cpu / tokens * 1e6:>10.2f}"]
            if not per_token:
                cells.append(f"{cpu / steps * 1e6:>10.1f}")
        print(f"{count:>9}" + "".join(cells), flush=True)
    print("us: CPU time of server and client together")
    return 0


def measure(num_sequences: int, num_steps: int, per_token: bool) -> tuple[int, float, float]:
    """(messages received, seconds, CPU seconds of both processes)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, num_sequences, num_steps, per_token))
    server.start()
    port = ours.recv()
    messages, seconds, cpu = asyncio.run(read(port, num_sequences * num_steps))
    ours.send(None)
    cpu += ours.recv()
    server.join()
    return messages, seconds, cpu


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def read(port: int, num_tokens: int) -> tuple[int, float, float]:
    import grpc

    from forebay.executor.v1 import executor_pb2, executor_pb2_grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        session = executor_pb2_grpc.ExecutorServiceStub(channel).Session()
        await session.write(executor_pb2.SessionRequest(hello=executor_pb2.Hello()))
        await session.read()
        messages = got = 0
        started, cpu = time.perf_counter(), cpu_seconds()
        while got < num_tokens:
            frame = (await session.read()).step
            got += len(frame.token_ids)
            messages += 1
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
        session.cancel()
    return messages, seconds, cpu


def serve(pipe, num_sequences: int, num_steps: int, per_token: bool) -> None:
    asyncio.run(serve_steps(pipe, num_sequences, num_steps, per_token))


async def serve_steps(pipe, num_sequences: int, num_steps: int, per_token: bool) -> None:
    import grpc

    from forebay.executor.v1 import executor_pb2
    from forebay.rpc import add_service
    from gpu_executor.engine import Load, StepOutput, TokenOutput
    from gpu_executor.outputs import Outbox
    from gpu_executor.request import Request, Sampling

    request = Request("r", [1], Sampling(max_tokens=num_steps + 1, n=num_sequences))
    load = Load(num_sequences, 0, 0, 1, 2, 0)
    cpu = 0.0

    class Servicer:
        async def Session(self, requests, context):
            nonlocal cpu
            await anext(aiter(requests))
            yield executor_pb2.SessionResponse(welcome=executor_pb2.Welcome())
            outbox, started = Outbox(), cpu_seconds()
            messages = aiter(outbox.messages())
            for step in range(num_steps):
                tokens = [TokenOutput(sequence, 7, step, None, None, False) for sequence in request.sequences]
                for group in [[token] for token in tokens] if per_token else [tokens]:
                    builder = outbox.frame()
                    for token in group:
                        builder.add_token(1, token)
                    builder.add_state(StepOutput(step, load))
                    yield await anext(messages)
            cpu = cpu_seconds() - started
            await asyncio.Event().wait()

    server = grpc.aio.server()
    add_service(server, executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"], Servicer())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    pipe.send(cpu)
    await server.stop(0)


if __name__ == "__main__":
    sys.exit(main())
