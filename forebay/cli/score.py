"""Owns `forebay score`: a query and documents to a running server, how well they fit to a file or the terminal."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from forebay.cli.client_flags import connect
from forebay.cli.parser import VerbParser
from forebay.cli.pooling_io import add_pooling_flags, params_of, read_inputs, run
from forebay.client_requests import to_prompt
from forebay.errors import InvalidRequest
from forebay.v1 import prompt_pb2

DESCRIPTION = """\
Tells how well documents answer a query; higher is better. Without QUERY, each line of a .jsonl --input is an object with
"query" and "document"."""


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError."""
    parser = VerbParser("score", DESCRIPTION)
    parser.add_argument("query", nargs="?", help="what is asked for")
    parser.add_argument("document", nargs="*", help="documents (default: the lines of --input)")
    add_pooling_flags(parser)
    parsed = parser.parse_args(arguments)
    params, options = params_of(parsed), {"model": parsed.model, "priority": parsed.priority}
    with connect(parsed) as client:
        return run(
            parsed,
            read_inputs(parsed, parsed.document, functools.partial(_pair, parsed.query)),
            lambda batch: client.score(*map(list, zip(*batch, strict=True)), params, **options),
            record=lambda output: {"score": output.score},
            numbers=lambda output: [output.score],
        )


def _pair(query: str | None, item: Any) -> tuple[prompt_pb2.Prompt, prompt_pb2.Prompt]:
    if query is not None:
        return to_prompt(query), to_prompt(item)
    if isinstance(item, Mapping) and item.keys() == {"query", "document"}:
        return to_prompt(item["query"]), to_prompt(item["document"])
    raise InvalidRequest('no object with "query" and "document", and no QUERY is given')
