"""Owns `forebay reward`: texts or chats to a running server, numbers for their tokens or steps to a file or the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.cli.client_flags import connect
from forebay.cli.parser import VerbParser
from forebay.cli.pooling_io import add_pooling_flags, params_of, read_inputs, run


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError."""
    parser = VerbParser(
        "reward", "Gives numbers for each token or step of texts or chats: how good a reward model finds them."
    )
    parser.add_argument("text", nargs="*", help="texts to reward (default: the lines of --input)")
    add_pooling_flags(parser)
    parser.add_argument("--activation", action="store_true", help="pass numbers through the model's activation")
    parsed = parser.parse_args(arguments)
    params = params_of(parsed, activation=True if parsed.activation else None)
    with connect(parsed) as client:
        return run(
            parsed,
            read_inputs(parsed, parsed.text),
            lambda batch: client.reward(batch, params, model=parsed.model, priority=parsed.priority),
            record=lambda output: {"rewards": output.data},
            numbers=None,
        )
