"""Streams a completion from a Forebay frontend.

python examples/client.py 127.0.0.1:50051 "A generator is"
"""

import sys

from forebay import Client, SamplingParams

server = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
prompt = sys.argv[2] if len(sys.argv) > 2 else "A generator is"

with Client(server) as client:
    for delta in client.stream(prompt, SamplingParams(temperature=0, max_tokens=48), timeout=60):
        print(delta.text, end="", flush=True)
print()
