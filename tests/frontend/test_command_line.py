"""The command line of the frontend: what is wrong with a setting is said in one line, and the help has every flag."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.errors import EXIT_BAD_CONFIG
from forebay.fingerprint import model_digest, tokenizer_digest
from frontend import main as module
from frontend.config import FrontendConfig
from tests.preprocess.tokenizer_zoo import CHATML, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny-model", chat_template=CHATML)


@pytest.fixture(autouse=True)
def _settings_of_this_test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FOREBAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(module, "set_up_logging", lambda level, format: None)


def status_and_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """What the command line gives and says on stderr."""
    try:
        status = module.main(list(arguments))
    except SystemExit as exit:
        status = exit.code
    return status, capsys.readouterr().err


def with_file(name: str, text: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / name).write_text(text)
        return [str(folder), "--executors", "localhost:1"]

    return arguments


def without_file(name: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / name).unlink()
        return [str(folder), "--executors", "localhost:1"]

    return arguments


def with_settings_file(text: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "settings.yaml").write_text(text)
        return [str(folder), "--config", str(folder / "settings.yaml")]

    return arguments


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no-model": (lambda folder: ["--executors", "a:1"], "MODEL is missing: model folder, or a name on the"),
    "no-such-flag": (
        lambda folder: [str(folder), "--prot", "1"],
        "--prot 1; `forebay frontend --help` lists the flags",
    ),
    "shortened": (lambda folder: [str(folder), "--max-queue", "1"], "unrecognized arguments: --max-queue 1"),
    "no-number": (lambda folder: [str(folder), "--port", "x"], "argument --port: invalid int value: 'x'"),
    "no-level": (lambda folder: [str(folder), "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    "no-executors": (lambda folder: [str(folder)], "--executors is missing: where the executors are"),
    "executors": (lambda folder: [str(folder), "--executors", "a"], "--executors: 'a' is not host:port"),
    "served-name": (
        lambda folder: [str(folder), "--executors", "a:1", "--served-model-name", "a b"],
        "--served-model-name 'a b'",
    ),
    "no-folder": (lambda folder: [f"{folder}-not", "--executors", "a:1"], "there is no folder"),
    "file": (lambda folder: [f"{folder}/config.json", "--executors", "a:1"], "is a file; give the folder of the model"),
    "not-in-cache": (
        lambda folder: ["forebay-tests/none", "--executors", "a:1"],
        "download it first, or give its folder",
    ),
    "tokenizer": (
        lambda folder: [str(folder), "--executors", "a:1", "--tokenizer", f"{folder}-not"],
        "there is no folder",
    ),
    "no-config": (without_file("config.json"), "config.json"),
    "broken-config": (with_file("config.json", "{"), "config.json"),
    "broken-tokenizer": (with_file("tokenizer.json", "{}"), "tokenizer.json"),
    "settings-key": (with_settings_file("executors: a:1\nports: 1"), "settings.yaml: unknown setting ports"),
    "settings-value": (with_settings_file("executors: a:1\nport: x"), "'x' is not a valid --port"),
    "settings-file": (
        lambda folder: [str(folder), "--config", f"{folder}/none.yaml"],
        "none.yaml: [Errno 2] No such file or directory",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_setting_is_named_in_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = BAD[case]
    status, message = status_and_message(capsys, *arguments(folder))
    assert status == EXIT_BAD_CONFIG, message
    assert message.startswith("forebay frontend: ") and message.count("\n") == 1 and says in message


def test_environment_variable_that_cannot_be_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREBAY_MAX_QUEUE_SIZE", "many")
    status, message = status_and_message(capsys, str(folder), "--executors", "a:1")
    assert status == EXIT_BAD_CONFIG
    assert message == (
        "forebay frontend: environment variable FOREBAY_MAX_QUEUE_SIZE: 'many' is not a valid --max-queue-size\n"
    )


def test_port_that_is_in_use_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, message = status_and_message(capsys, str(folder), "--executors", "a:1", "--port", f"{port}")
    assert status == EXIT_BAD_CONFIG and f"cannot listen on 127.0.0.1:{port}: " in message


def test_tokenizer_from_elsewhere_is_not_compared_with_the_executors(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", "wordpiece")
    config = FrontendConfig(model=str(folder), executors="a:1")
    _, model, fingerprint = module.load_model_folder(config)
    assert (model.names, fingerprint.tokenizer_digest) == (("tiny-model",), tokenizer_digest(folder))
    assert fingerprint.model_digest == model_digest(json.loads((folder / "config.json").read_text()))
    config = FrontendConfig(model=str(folder), executors="a:1", tokenizer=str(other))
    _, model, fingerprint = module.load_model_folder(config)
    assert fingerprint.tokenizer_digest == "" and model.preprocessor.has_tokenizer


def test_folder_without_a_tokenizer_serves_token_ids(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    _, model, fingerprint = module.load_model_folder(FrontendConfig(model=str(folder), executors="a:1"))
    assert not model.preprocessor.has_tokenizer and fingerprint.tokenizer_digest == ""


# ---- help --------------------------------------------------------------------------------------------------------


def help_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_has_every_setting_and_no_line_that_wraps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_text(capsys, monkeypatch)
    for name in FrontendConfig.__dataclass_fields__:
        if name != "model":
            assert f"\n  --{name.replace('_', '-')}" in text, name
    assert max(map(len, text.splitlines())) <= 120
    assert "None" not in text and "MISSING" not in text and "()" not in text


def test_examples_of_the_help_can_be_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_text(capsys, monkeypatch)
    assert text.startswith("usage: forebay frontend [-h] ") and "[MODEL]\n" in text
    examples = [line.split() for line in text.splitlines() if line.startswith("  forebay frontend ")]
    assert len(examples) == 2
    for _, _, *arguments in examples:
        begun: list[FrontendConfig] = []
        monkeypatch.setattr(module, "serve", lambda config, begun=begun: begun.append(config))
        monkeypatch.setattr(module.asyncio, "run", lambda nothing: None)
        assert module.main(arguments) == 0 and begun[0].model == arguments[0]
