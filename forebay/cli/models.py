"""Owns `forebay models`: the architectures of the registry by family, for a terminal or as README's table."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from forebay.cli.parser import VerbParser

if TYPE_CHECKING:
    from gpu_executor.models.registry import Architecture


class FamilyRow(NamedTuple):
    """Architectures of one family that do and take the same."""

    family: str
    names: tuple[str, ...]
    examples: tuple[str, ...]
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = VerbParser(
        "models", "Lists the architectures that can be served: what `architectures` of config.json says."
    )
    parser.add_argument("--markdown", action="store_true", help="print the table of README.md")
    parsed = parser.parse_args(arguments)
    from gpu_executor.models.registry import architectures

    rows = family_rows(architectures())
    print(markdown_table(rows) if parsed.markdown else _listing(rows))
    return 0


def family_rows(architectures: Iterable[Architecture]) -> list[FamilyRow]:
    """A row per family, or several where its architectures differ in what they do or take; by family, then name."""
    rows: dict[tuple[str, tuple[str, ...], tuple[str, ...]], FamilyRow] = {}
    for found in architectures:
        key = (found.family, found.tasks, found.inputs)
        row = rows.get(key, FamilyRow(found.family, (), (), found.tasks, found.inputs))
        examples = tuple(dict.fromkeys((*row.examples, found.examples)))
        rows[key] = row._replace(names=(*row.names, found.name), examples=examples)
    return sorted(rows.values())


def markdown_table(rows: Sequence[FamilyRow]) -> str:
    """The table of README.md, with a line that counts the architectures."""
    lines = [
        f"{sum(len(row.names) for row in rows)} architectures in {len({row.family for row in rows})} families:",
        "",
        "| Models | `architectures` of config.json | Tasks | Inputs |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.names)
        lines.append(f"| {', '.join(row.examples)} | {names} | {', '.join(row.tasks)} | {', '.join(row.inputs)} |")
    return "\n".join(lines)


def _listing(rows: Sequence[FamilyRow]) -> str:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = []
    for row in rows:
        lines.append(f"{row.family}: {', '.join(row.tasks)} from {', '.join(row.inputs)}")
        for words in (row.names, row.examples):
            text = ", ".join(words)
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)
