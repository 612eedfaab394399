"""Writes the table of values in the chart's README from the comments in values.yaml.

`python tests/chart/values_table.py` rewrites the README; a test holds that it has nothing to change.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "forebay"
BEGIN = "<!-- values: written by `python tests/chart/values_table.py`; a test holds that it is current -->\n"
END = "<!-- end of values -->\n"

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")
_COMMENT = re.compile(r" *# (?P<marker>-- )?(?P<text>.*)")


def documented_keys(text: str) -> dict[str, str]:
    """The dotted path of every key with a `# --` comment above it, with the comment, in the order of the file."""
    found: dict[str, str] = {}
    path: list[str] = []
    comment: str | None = None
    for line in text.splitlines():
        if match := _COMMENT.fullmatch(line):
            if match["marker"]:
                comment = match["text"]
            elif comment is not None:
                comment += " " + match["text"]
        elif match := _KEY.match(line):
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if comment is not None:
                found[".".join(path)] = comment
            comment = None
        else:
            comment = None
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of everything in the values that is not a map with keys of its own."""
    paths: list[str] = []
    for key, value in values.items():
        paths += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return paths


def table(text: str) -> str:
    """The table, a row per documented key."""
    values = yaml.safe_load(text)
    rows = ["| Key | Default | Meaning |", "| --- | --- | --- |"]
    for path, comment in documented_keys(text).items():
        default: Any = values
        for key in path.split("."):
            default = default[key]
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {comment} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, text: str) -> str:
    """The README with the table of these values between its markers."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(text)}\n{END}{tail}"


if __name__ == "__main__":
    README = CHART / "README.md"
    README.write_text(
        with_table(README.read_text(encoding="utf-8"), (CHART / "values.yaml").read_text(encoding="utf-8"))
    )
