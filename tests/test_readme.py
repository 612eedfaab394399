"""What README.md and docs/deploy.md say of the code is what the code says."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from frontend.config import FrontendConfig
from gpu_executor.config import ExecutorConfig
from preprocess.config import PreprocessConfig
from tests.generated_tables import ARCHITECTURES, README, with_lines, with_table

TEXT = README.read_text(encoding="utf-8")
DEPLOY = (README.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
SETTINGS: dict[str, list[object]] = {}  # the defaults of each flag; the tiers may differ
for config in (FrontendConfig, ExecutorConfig, PreprocessConfig):
    for field in dataclasses.fields(config):
        SETTINGS.setdefault(f"--{field.name.replace('_', '-')}", []).append(field.default)
OF_OTHER_PROGRAMS = {"--build-arg", "--set", "--server", "--service", "--help", "--config"}


def test_the_table_of_architectures_is_current() -> None:
    pytest.importorskip("torch", reason="torch is not installed: the registry needs it")
    assert with_table(TEXT) == TEXT, "run: make readme"


def test_the_table_of_lines_per_family_is_current() -> None:
    pytest.importorskip("torch", reason="torch is not installed: the registry needs it")
    page = ARCHITECTURES.read_text(encoding="utf-8")
    assert with_lines(page) == page, "run: make readme"


def test_every_command_names_a_verb_and_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: some verbs need it")
    from forebay.cli import VERBS, main

    commands = re.findall(r"^forebay ([a-z]+)(.*)$", TEXT, re.MULTILINE)
    assert {verb for verb, _ in commands} >= {"serve", "generate", "chat", "executor", "frontend"}
    for verb, rest in commands:
        assert verb in VERBS, verb
        assert main([verb, "--help"]) == 0
        offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest.partition("#")[0])) <= offered, verb


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
def test_examples_in_python_compile_and_import_what_there_is(block: str) -> None:
    compile(block, "README.md", "exec")
    for line in re.findall(r"^from forebay import .*$", block, re.MULTILINE):
        exec(line, {})


def test_flags_in_the_guide_exist_and_have_the_defaults_that_it_says() -> None:
    named = set(re.findall(r"--[a-z][a-z-]*[a-z]", DEPLOY)) - OF_OTHER_PROGRAMS
    assert len(named) > 15 and named <= SETTINGS.keys()
    rows = dict(re.findall(r"^\| `(--[a-z-]+)` \| (\d[^|]*?) \|", DEPLOY, re.MULTILINE))
    units = {"": 1, " MiB": 1 << 20, " GiB": 1 << 30}
    for flag, default in rows.items():
        number, unit = re.match(r"(\d+)( [MG]iB)?", default).groups(default="")
        assert {int(number) * units[unit], None} & set(SETTINGS[flag]), flag  # None: decided at start
    assert {"--max-queue-size", "--max-num-seqs", "--max-unsent-bytes"} <= rows.keys()


def test_the_proxy_of_the_guide_asks_for_a_service_that_there_is() -> None:
    from frontend.server import SERVICE_NAMES

    (cluster,) = yaml.safe_load((README.parent / "examples" / "envoy.yaml").read_text())["static_resources"]["clusters"]
    assert cluster["health_checks"][0]["grpc_health_check"]["service_name"] in SERVICE_NAMES


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md"])
def test_links_lead_to_files_that_there_are(page: str) -> None:
    path = README.parent / page
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert targets
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing
