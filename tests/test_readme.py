"""What README.md says of the code is what the code says."""

from __future__ import annotations

import re

import pytest

from tests.architecture_table import README, with_table

TEXT = README.read_text(encoding="utf-8")


def test_the_table_of_architectures_is_current() -> None:
    pytest.importorskip("torch", reason="torch is not installed: the registry needs it")
    assert with_table(TEXT) == TEXT, "run: make readme"


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
