"""Owns `forebay generate`: one prompt to a running server, its continuation to the terminal as it comes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from forebay.cli.client_flags import add_connection_flags, add_generation_flags, connect, sampling
from forebay.cli.media_flags import add_media_flags, beside, read_media
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
    add_media_flags(parser, "the prompt, which has the model's own placeholder, such as <image>, for each")
    add_generation_flags(parser)
    add_connection_flags(parser)
    parsed = parser.parse_args(arguments)
    as_ids = parsed.token_ids is not None
    if as_ids and parsed.prompt is not None:
        raise ConfigError("give either a prompt or --token-ids")
    media = beside(read_media(parsed))
    prompt: PromptInput
    if as_ids:
        written, prompt = parsed.token_ids, {"prompt_token_ids": _token_ids(parsed.token_ids), **media}
    else:
        written = _text(parsed.prompt)
        prompt = {"prompt": written, **media}
    params = sampling(parsed, n=parsed.n)
    options = {"model": parsed.model, "priority": parsed.priority}
    with connect(parsed) as client:
        if parsed.echo:
            print(written, end="", flush=True)
        if parsed.n == 1:
            _stream(client, prompt, params, as_ids, **options)
        else:
            _print_all(client, prompt, params, as_ids, **options)
    return 0


def _stream(client: Client, prompt: PromptInput, params: SamplingParams, as_ids: bool, **options: object) -> None:
    begun = False
    try:
        for delta in client.stream(prompt, params, **options):
            text = "".join(f"{token_id} " for token_id in delta.token_ids) if as_ids else delta.text
            begun = begun or bool(text)
            print(text, end="", flush=True)
    finally:
        if begun:
            print(flush=True)


def _print_all(client: Client, prompt: PromptInput, params: SamplingParams, as_ids: bool, **options: object) -> None:
    """Several sequences, one after the other: streamed, they would run into each other."""
    for sequence in client.generate(prompt, params, **options).outputs:
        text = " ".join(map(str, sequence.token_ids)) if as_ids else sequence.text
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
