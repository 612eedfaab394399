"""Owns `forebay generate`: one prompt to a running server, its continuation to the terminal as it comes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from forebay.cli.client_flags import add_connection_flags, add_generation_flags, connect, sampling
from forebay.cli.parser import VerbParser
from forebay.client import Client
from forebay.client_requests import PromptInput
from forebay.flags import ConfigError
from forebay.sampling_params import SamplingParams


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError."""
    parser = VerbParser("generate", "Continues a prompt on a running server and prints the text as it comes.")
    parser.add_argument("prompt", nargs="?", help="text to continue (default: standard input)")
    parser.add_argument("--token-ids", metavar="N,N,…", help="token ids in place of a text; token ids are printed")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="sequences to generate (default: 1)")
    parser.add_argument("--echo", action="store_true", help="print the prompt too")
    add_generation_flags(parser)
    add_connection_flags(parser)
    parsed = parser.parse_args(arguments)
    if parsed.token_ids is not None and parsed.prompt is not None:
        raise ConfigError("give either a prompt or --token-ids")
    prompt: PromptInput = _token_ids(parsed.token_ids) if parsed.token_ids is not None else _text(parsed.prompt)
    params = sampling(parsed, n=parsed.n)
    options = {"model": parsed.model, "priority": parsed.priority}
    with connect(parsed) as client:
        if parsed.echo:
            print(prompt if isinstance(prompt, str) else parsed.token_ids, end="", flush=True)
        if parsed.n == 1:
            _stream(client, prompt, params, **options)
        else:
            _print_all(client, prompt, params, **options)
    return 0


def _stream(client: Client, prompt: PromptInput, params: SamplingParams, **options: object) -> None:
    begun = False
    try:
        for delta in client.stream(prompt, params, **options):
            text = delta.text if isinstance(prompt, str) else "".join(f"{token_id} " for token_id in delta.token_ids)
            begun = begun or bool(text)
            print(text, end="", flush=True)
    finally:
        if begun:
            print(flush=True)


def _print_all(client: Client, prompt: PromptInput, params: SamplingParams, **options: object) -> None:
    """Several sequences, one after the other: streamed, they would run into each other."""
    for sequence in client.generate(prompt, params, **options).outputs:
        text = sequence.text if isinstance(prompt, str) else " ".join(map(str, sequence.token_ids))
        print(f"[{sequence.index}] {text}")


def _text(prompt: str | None) -> str:
    if prompt is not None:
        return prompt
    if sys.stdin.isatty():
        raise ConfigError('give a prompt, such as forebay generate "Once upon a time"')
    return sys.stdin.read()


def _token_ids(text: str) -> list[int]:
    try:
        return [int(item) for item in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"--token-ids {text[:100]!r}: expected integers, such as 1,2,3") from None
