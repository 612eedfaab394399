"""The Dockerfiles keep to the rules: pinned bases, no root, no secrets, nothing copied that is not there.

There is no image builder in the test environment: these tests read the files, they build nothing.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TIERS = ("frontend", "executor")
INSTRUCTIONS = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT"}


def _instructions(tier: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a tier's Dockerfile, continued lines joined, comments left out."""
    text = (ROOT / "docker" / f"Dockerfile.{tier}").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], re.sub(r"\s+", " ", line.split(maxsplit=1)[1])) for line in lines]


def _last_stage(tier: str) -> list[tuple[str, str]]:
    found = _instructions(tier)
    start = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def _arguments(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions if instruction == name]


def _ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build; its patterns are `name` at the root or `**/name` anywhere."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            assert "/" not in pattern, f"{line} is not a pattern that this test understands"
            names = path.split("/") if "**/" in line else path.split("/")[:1]
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                ignored = not line.startswith("!")  # the last pattern that matches decides
    return ignored


@pytest.mark.parametrize("tier", TIERS)
def test_only_known_instructions_are_used(tier: str) -> None:
    instructions = _instructions(tier)
    assert {name for name, _ in instructions} <= INSTRUCTIONS  # no ADD, no HEALTHCHECK, no VOLUME, no ONBUILD
    assert instructions[0][0] == "ARG"


@pytest.mark.parametrize("tier", TIERS)
def test_every_stage_has_a_pinned_base(tier: str) -> None:
    instructions = _instructions(tier)
    defaults = dict(argument.partition("=")[::2] for argument in _arguments(instructions, "ARG"))
    stages = _arguments(instructions, "FROM")
    assert len(stages) == 2
    for stage in stages:
        base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], stage.split(" AS ")[0])
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base), base


@pytest.mark.parametrize("tier", TIERS)
def test_the_process_is_not_root_and_is_the_user_of_the_chart(tier: str) -> None:
    last = _last_stage(tier)
    assert _arguments(last, "USER") == ["10001:10001"]
    names = [name for name, _ in last]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    pod = (ROOT / "helm/forebay/templates/_pod.tpl").read_text(encoding="utf-8")
    assert "runAsUser: 10001" in pod and "runAsGroup: 10001" in pod


@pytest.mark.parametrize("tier", TIERS)
def test_the_entry_point_is_the_tier(tier: str) -> None:
    assert [json.loads(entry) for entry in _arguments(_last_stage(tier), "ENTRYPOINT")] == [["forebay", tier]]


@pytest.mark.parametrize("tier", TIERS)
def test_the_exposed_port_is_the_one_of_the_chart(tier: str) -> None:
    values = yaml.safe_load((ROOT / "helm/forebay/values.yaml").read_text(encoding="utf-8"))
    assert _arguments(_last_stage(tier), "EXPOSE") == [str(values[tier]["port"])]


@pytest.mark.parametrize("tier", TIERS)
def test_what_is_copied_is_there_and_in_the_build_context(tier: str) -> None:
    instructions = _instructions(tier)
    stages = {stage.rpartition(" AS ")[2] for stage in _arguments(instructions, "FROM") if " AS " in stage}
    copied = set()
    for arguments in _arguments(instructions, "COPY"):
        *sources, _ = arguments.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not _ignored(source), f"{source} is in .dockerignore"
            copied.add(source)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == packages | {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}


@pytest.mark.parametrize("path", [".git/config", ".env", "demo/model", "frontend/__pycache__/main.pyc", "kernels/a.so"])
def test_nothing_else_is_in_the_build_context(path: str) -> None:
    assert _ignored(path)


@pytest.mark.parametrize("tier", TIERS)
def test_packages_are_pinned_and_only_the_executor_has_torch(tier: str) -> None:
    runs = " ".join(_arguments(_instructions(tier), "RUN"))
    installs = re.findall(r"pip install ([^&]+)", runs)
    assert installs and all("--constraint constraints.txt" in install for install in installs)
    assert f"[{tier}]" in runs
    assert ("torch" in runs) == (tier == "executor")


def test_torch_is_the_one_of_the_constraints() -> None:
    (version,) = re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"TORCH_VERSION={version}" in _arguments(_instructions("executor"), "ARG")


@pytest.mark.parametrize("tier", TIERS)
def test_no_secret_goes_into_an_image(tier: str) -> None:
    for name in ("ARG", "ENV", "RUN", "LABEL"):
        for arguments in _arguments(_instructions(tier), name):
            assert not re.search(r"token|secret|passw|credential|api_?key", arguments, re.IGNORECASE), arguments
