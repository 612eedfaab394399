"""Every flag and variable that the chart gives a container is one that the program takes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CASES, TIERS, case, container

ROOT = Path(__file__).parents[2]
MODULES = {"frontend": "frontend.main", "executor": "gpu_executor.main"}
CONFIGS = {"frontend": ("frontend.config", "FrontendConfig"), "executor": ("gpu_executor.config", "ExecutorConfig")}


@pytest.mark.parametrize("tier", TIERS)
def test_flags_are_in_the_help_of_the_program(tier: str) -> None:
    command = [sys.executable, "-m", MODULES[tier], "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    if "ModuleNotFoundError" in result.stderr or "ImportError" in result.stderr:
        pytest.skip(f"{MODULES[tier]} cannot be imported: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    offered = set(result.stdout.replace(",", " ").replace("[", " ").split())
    given = {arg.partition("=")[0] for name in CASES for arg in container(case(name), tier)["args"] if arg[0] == "-"}
    assert given <= offered


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", CASES)
def test_the_program_takes_its_arguments_and_environment(name: str, tier: str) -> None:
    flags = pytest.importorskip("forebay.flags", reason="forebay.flags cannot be imported", exc_type=ImportError)
    config = _config(tier)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_flags(parser, config)
    its_container = container(case(name), tier)
    literal = {item["name"]: item["value"] for item in its_container["env"] if "value" in item}
    settings = flags.read_config(config, parser.parse_args(its_container["args"]), literal)
    assert settings.model == its_container["args"][0]
    known = {f"FOREBAY_{field.name.upper()}" for field in dataclasses.fields(config)}
    assert {item["name"] for item in its_container["env"] if item["name"].startswith("FOREBAY_")} <= known


def _config(tier: str) -> Any:
    module, name = CONFIGS[tier]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported: {error}")
