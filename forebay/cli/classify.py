"""Owns `forebay classify`: texts to a running server, how likely each class is to a file or the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forebay.cli.client_flags import connect
from forebay.cli.parser import VerbParser
from forebay.cli.pooling_io import add_pooling_flags, params_of, read_inputs, run
from forebay.outputs import ClassificationOutput


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError."""
    parser = VerbParser("classify", "Tells how likely each of the model's classes is for texts.")
    parser.add_argument("text", nargs="*", help="texts to classify (default: the lines of --input)")
    add_pooling_flags(parser)
    parsed = parser.parse_args(arguments)
    params = params_of(parsed)
    with connect(parsed) as client:
        return run(
            parsed,
            read_inputs(parsed, parsed.text),
            lambda batch: client.classify(batch, params, model=parsed.model, priority=parsed.priority),
            record=_record,
            numbers=lambda output: output.probs,
        )


def _record(output: ClassificationOutput) -> dict[str, Any]:
    best = max(range(len(output.probs)), key=output.probs.__getitem__)
    return {"class": best, **({"label": output.labels[best]} if output.labels else {}), "probs": output.probs}
