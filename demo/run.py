"""Shows Forebay at work: an executor and a frontend as two processes on loopback, and one completion streamed from them."""

from __future__ import annotations

import argparse
import sys
import time

from servers import SERVICE, run_demo, styled

from forebay import Client, SamplingParams

MODEL = "demo/model"
PROMPT = "The with statement is used to"

NEXT_STEPS = f"""
How to go on, in the virtual environment that was just made (source .venv/bin/activate):

  forebay serve {MODEL}                                              # both tiers, on port 50051
  forebay generate "A generator is"
  forebay chat
  buf curl --http2-prior-knowledge --protocol grpc \\
    -d '{{"prompt": {{"text": "A generator is"}}, "sampling": {{"max_tokens": 32}}}}' \\
    http://127.0.0.1:50051/{SERVICE}/StreamGenerate                # buf: npm install @bufbuild/buf
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (default: %(default)r)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    arguments = parser.parse_args()
    status = run_demo(MODEL, lambda server: stream(server, arguments))
    if not status:
        print(NEXT_STEPS)
    return status


def stream(server: str, arguments: argparse.Namespace) -> None:
    """Prints a completion as it comes, then its times."""
    params = SamplingParams(max_tokens=arguments.max_tokens, temperature=arguments.temperature)
    print(styled(1, arguments.prompt), end="", flush=True)
    sent, first, num_tokens = time.monotonic(), 0.0, 0
    with Client(server, timeout=60) as client:
        for delta in client.stream(arguments.prompt, params):
            first = first or time.monotonic()
            num_tokens += len(delta.token_ids)
            print(delta.text, end="", flush=True)
    end = time.monotonic()
    rate = (num_tokens - 1) / (end - first) if num_tokens > 1 else 0.0
    print(f"\n\ntime to first token {1e3 * (first - sent):.1f} ms, then {rate:.0f} tokens/s ({num_tokens} tokens)\n")


if __name__ == "__main__":
    sys.exit(main())
