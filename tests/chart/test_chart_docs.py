"""What is written about the chart is true: the table of values, the examples, the versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import CHART, chart, helm, render
from tests.chart.values_table import documented_keys, leaves, with_table

ROOT = Path(__file__).parents[2]
PAGES = (CHART / "README.md", ROOT / "docs" / "deploy.md")
VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    """The fenced blocks of a language on all pages, comments and continued lines as they are."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [block for page in PAGES for block in fence.findall(page.read_text(encoding="utf-8"))]


def test_the_table_of_values_is_current() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert readme == with_table(readme, VALUES), "run: python tests/chart/values_table.py"


def test_every_value_is_documented() -> None:
    documented = documented_keys(VALUES)
    for path in leaves(yaml.safe_load(VALUES)):
        parents = {path.rsplit(".", count)[0] for count in range(path.count(".") + 1)}
        assert parents & documented.keys(), f"{path} has no comment that begins with '# --'"
    assert all(comment.endswith(".") for comment in documented.values())


@pytest.mark.parametrize("block", _blocks("yaml"))
def test_examples_are_values_that_the_chart_takes(block: str) -> None:
    assert render(yaml.safe_load(block))


def test_commands_set_values_that_the_chart_takes() -> None:
    expressions = [found for block in _blocks("") for found in re.findall(r"--set (\S+)", block)]
    assert expressions
    for expression in expressions:
        render(helm.parse_set_string(expression))


def test_the_chart_is_of_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart().metadata["appVersion"] == project["version"]


def test_a_packaged_chart_is_whole(tmp_path: Path) -> None:
    packaged = helm.Chart.load(helm.package(CHART, destination=tmp_path))
    assert packaged.schema == chart().schema
    assert packaged.render({}, name="test") == chart().render({}, name="test")
    assert "README.md" in {file["name"] for file in packaged.files}
