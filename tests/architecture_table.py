"""Owns the table of architectures in README.md: writes it when run, for `make readme`."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_BETWEEN_MARKERS = re.compile(r"(<!-- architectures:.*?-->\n).*?(<!-- end of architectures -->)", re.DOTALL)


def with_table(readme: str) -> str:
    """The text of README.md with the table that the registry gives now."""
    from forebay.cli.models import family_rows, markdown_table
    from gpu_executor.models.registry import architectures

    table = markdown_table(family_rows(architectures()))
    new, count = _BETWEEN_MARKERS.subn(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme)
    assert count == 1, "README.md has lost the markers around its table of architectures"
    return new


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
