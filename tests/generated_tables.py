"""Owns the tables of the documentation that the registry and the families make: writes them when run, for `make readme`."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURES = ROOT / "docs" / "architectures.md"
_FAMILIES = ROOT / "gpu_executor" / "models" / "families"


def with_table(readme: str) -> str:
    """The text of README.md with the table that the registry gives now."""
    from forebay.cli.models import family_rows, markdown_table
    from gpu_executor.models.registry import architectures

    return _replaced(readme, "architectures", markdown_table(family_rows(architectures())))


def with_lines(page: str) -> str:
    """The text of docs/architectures.md with what each family costs now."""
    from gpu_executor.models.registry import architectures

    names = Counter(architecture.family for architecture in architectures())
    lines = {family: len((_FAMILIES / f"{family}.py").read_text(encoding="utf-8").splitlines()) for family in names}
    rows = [f"| {family} | {names[family]} | {lines[family]} |" for family in sorted(names)]
    summary = (
        f"{sum(names.values())} names in {len(names)} families; {statistics.median(lines.values()):.0f} lines in the median, "
        f"{sum(lines.values()):,} in all."
    )
    return _replaced(
        page, "lines", "\n".join([summary, "", "| Family | Names | Lines |", "| --- | --- | --- |", *rows])
    )


def _replaced(text: str, marker: str, table: str) -> str:
    """The text with the table between `<!-- marker: … -->` and `<!-- end of marker -->`."""
    between = re.compile(rf"(<!-- {marker}:.*?-->\n).*?(<!-- end of {marker} -->)", re.DOTALL)
    new, count = between.subn(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)
    assert count == 1, f"the markers of {marker} are lost"
    return new


if __name__ == "__main__":
    for path, update in ((README, with_table), (ARCHITECTURES, with_lines)):
        path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")
