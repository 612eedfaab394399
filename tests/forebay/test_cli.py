"""The command line: help, verbs against a real frontend, and errors of one line with the right exit status."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib
import io
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forebay.cli import VERBS, main
from forebay.cli.serve import _environment, free_port
from forebay.errors import EXIT_BAD_CONFIG, Unavailable
from forebay.flags import read_config
from frontend.config import FrontendConfig
from gpu_executor.config import ExecutorConfig
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import tier

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo" / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; gives its exit status and what it printed to either stream."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


async def beside(run: Any, *arguments: str) -> tuple[int, str, str]:
    """Runs a command line beside the event loop of the server that it calls."""
    return await asyncio.wait_for(asyncio.to_thread(run, *arguments), 20)


def one_line(err: str, verb: str) -> str:
    """The message of an error, which must be one line that begins with the program."""
    assert err.count("\n") == 1 and err.startswith(f"forebay {verb}: "), err
    return err


# Help and dispatch


def test_help_names_every_verb_with_an_example(run: Any) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.help)}$", out, re.MULTILINE)
        assert verb.example in out and verb.example.startswith(f"forebay {name}")
    assert max(map(len, out.splitlines())) <= 110
    assert run()[1] == out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from forebay.cli import main; main(['--help']); "
        "print('heavy:', *[n for n in ('grpc', 'torch', 'transformers', 'numpy', 'yaml') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.rstrip().endswith("heavy:")


@pytest.mark.parametrize("verb", ["generate", "chat", "embed", "classify", "score", "reward", "health"])
def test_a_clients_verb_needs_neither_torch_nor_a_tokenizer(verb: str) -> None:
    code = (
        f"import sys, importlib; importlib.import_module({VERBS[verb].module!r}); "
        "print(*[n for n in ('torch', 'transformers', 'tokenizers', 'numpy') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, run: Any) -> None:
    status, out, _ = run(verb, "--help")
    assert status == 0 and out.startswith(f"usage: forebay {verb}")


def test_version_is_that_of_the_package(run: Any) -> None:
    status, out, _ = run("--version")
    assert status == 0 and re.fullmatch(r"forebay \d+\.\d+\S*\n", out)


def test_python_m_forebay_is_the_same_program() -> None:
    command = [sys.executable, "-m", "forebay", "no-such-verb"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == EXIT_BAD_CONFIG and "no-such-verb" in result.stderr


@pytest.mark.parametrize(("given", "hint"), [("generat", "did you mean `forebay generate`?"), ("zzz", "--help")])
def test_an_unknown_verb_gets_a_hint(given: str, hint: str, run: Any) -> None:
    status, _, err = run(given)
    assert status == EXIT_BAD_CONFIG and hint in err and err.count("\n") == 1


def test_a_missing_package_is_named_with_the_extra_that_brings_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

    monkeypatch.setattr(importlib, "import_module", missing)
    status, _, err = run("describe", "x")
    assert status == EXIT_BAD_CONFIG and "pip install 'forebay[executor]'" in one_line(err, "describe")


def test_a_module_of_ours_that_is_missing_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name, name="gpu_executor.nothing")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["describe", "x"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--no-such-flag"),
        ("generate", "x", "--max-tokens", "many"),
        ("generate", "x", "--max-tokens", "-1"),
        ("generate", "x", "--token-ids", "1"),
        ("generate", "--token-ids", "1,b"),
        ("generate", "x", "--metadata", "novalue"),
        ("generate", "x", "--cert-file", "a.pem"),
        ("generate", "x", "--ca-file", "/no/such.pem"),
        ("chat", "surplus"),
        ("models", "surplus"),
        ("describe", "/no/such/folder"),
        ("describe", MODEL, "--block-size", "0"),
        ("describe", MODEL, "--config", "/no/such.yaml"),
        ("health", "surplus"),
        ("serve",),
        ("serve", "/no/such/folder"),
        ("serve", MODEL, "--executors", "elsewhere:1"),
        ("serve", MODEL, "--port", "70000"),
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_one_line_and_exit_status_78(arguments: tuple[str, ...], run: Any) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (EXIT_BAD_CONFIG, "")
    one_line(err, arguments[0])


@pytest.mark.parametrize("verb", ["generate", "health"])
def test_a_server_that_is_not_there_is_exit_status_1_and_says_what_to_do(verb: str, run: Any) -> None:
    server = f"127.0.0.1:{free_port()}"
    arguments = ["x"] if verb == "generate" else []
    status, out, err = run(verb, *arguments, "--server", server)
    assert (status, out) == (1, "")
    assert f"{server} cannot be reached" in one_line(err, verb) and "forebay serve" in err


def test_an_error_that_passes_says_when(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def main_of_verb(arguments: list[str]) -> int:
        raise Unavailable("busy", retry_after_ms=1500)

    monkeypatch.setattr("forebay.cli.health.main", main_of_verb)
    assert run("health") == (1, "", "forebay health: busy (try again in 1.5 s)\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "import sys; from forebay.cli import main; sys.exit(main(['models']))"
    command = f'{sys.executable} -c "{code}" | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == "" and result.stdout.strip() in ("0", "141")  # 0 where the pipe held it all


# generate, chat, health


async def test_generate_streams_the_text(run: Any) -> None:
    async with tier() as up:
        server = ("--server", f"127.0.0.1:{up.port}")
        status, out, err = await beside(run, "generate", "hello", *server, "--max-tokens", "5", "--seed", "3")
        assert (status, out, err) == (0, text_of(expected_tokens(3, 0, 5)) + "\n", "")
        _, out, _ = await beside(run, "generate", "hello", *server, "--max-tokens", "5", "--seed", "3", "--echo")
        assert out == "hello" + text_of(expected_tokens(3, 0, 5)) + "\n"
    assert bytes(up.executor.submits[0].prompt_token_ids) == b"hello"


async def test_generate_prints_several_sequences_one_after_the_other(run: Any) -> None:
    async with tier() as up:
        arguments = ("hello", "--server", f"127.0.0.1:{up.port}", "--max-tokens", "5", "--seed", "3", "--n", "2")
        _, out, _ = await beside(run, "generate", *arguments)
    assert out == "".join(f"[{i}] {text_of(expected_tokens(3, i, 5))}\n" for i in (0, 1))


async def test_generate_takes_token_ids_and_prints_token_ids(run: Any) -> None:
    async with tier() as up:
        arguments = ("--token-ids", "7,8", "--server", f"127.0.0.1:{up.port}", "--max-tokens", "3", "--seed", "3")
        _, out, _ = await beside(run, "generate", *arguments)
        _, both, _ = await beside(run, "generate", *arguments, "--n", "2")
    assert list(up.executor.submits[0].prompt_token_ids) == [7, 8]
    assert out.split() == [str(token_id) for token_id in expected_tokens(3, 0, 3)]
    assert both.splitlines()[1].split() == ["[1]", *map(str, expected_tokens(3, 1, 3))]


async def test_generate_reads_standard_input(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    async with tier() as up:
        await beside(run, "generate", "--server", f"127.0.0.1:{up.port}", "--max-tokens", "1")
    assert bytes(up.executor.submits[0].prompt_token_ids) == b"from a pipe"


async def test_every_sampling_flag_reaches_the_server(run: Any) -> None:
    flags = {
        "max_tokens": 4, "min_tokens": 1, "temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.25,
        "presence_penalty": -1.0, "frequency_penalty": 1.5, "repetition_penalty": 1.25, "seed": 9,
    }  # fmt: skip
    seen: list[Any] = []
    async with tier() as up:
        resolve = up.server._generation._resolve_sampling
        up.server._generation._resolve_sampling = lambda params, **facts: (
            seen.append(params) or resolve(params, **facts)
        )
        given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        arguments = ("x", *given, "--stop", "a b", "--stop", "c", "--ignore-eos", "--priority", "-3", "--model", "tiny")
        status, _, err = await beside(run, "generate", *arguments, "--server", f"127.0.0.1:{up.port}")
    assert status == 0, err
    assert {name: getattr(seen[0], name) for name in flags} == flags
    assert list(seen[0].stop) == ["a b", "c"] and seen[0].ignore_eos
    assert up.executor.submits[0].priority == -3


async def test_an_error_of_the_server_is_one_line(run: Any) -> None:
    async with tier() as up:
        status, _, err = await beside(run, "generate", "x", "--model", "other", "--server", f"127.0.0.1:{up.port}")
    assert status == EXIT_BAD_CONFIG and "no model 'other'" in one_line(err, "generate")


async def test_a_timeout_is_exit_status_1(run: Any) -> None:
    async with tier(FakeExecutor()) as up:
        arguments = ("x", "--server", f"127.0.0.1:{up.port}", "--timeout", "0.2")
        status, _, err = await beside(run, "generate", *arguments)
    assert status == 1
    one_line(err, "generate")


class ChatTier:
    """A tier whose preprocessor takes chat, and what it was asked."""

    def __init__(self, up: Any) -> None:
        self.conversations: list[list[tuple[int, str]]] = []
        up.preprocessor.encode = self._encode

    def _encode(self, prompt: Any, **_: Any) -> list[int]:
        assert prompt.WhichOneof("kind") == "chat"
        self.conversations.append([(m.role, m.content[0].text) for m in prompt.chat.messages])
        return [len(self.conversations)]


async def test_chat_remembers_what_was_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n/new\nthree\n/quit\nfour\n"))
    async with tier() as up:
        chat = ChatTier(up)
        arguments = ("--server", f"127.0.0.1:{up.port}", "--system", "Be brief.", "--max-tokens", "3", "--seed", "1")
        status, out, err = await beside(run, "chat", *arguments)
    answer = text_of(expected_tokens(1, 0, 3))
    assert (status, out, err) == (0, f"{answer}\n" * 3, "")
    system, user, assistant = 1, 2, 3
    assert chat.conversations == [
        [(system, "Be brief."), (user, "one")],
        [(system, "Be brief."), (user, "one"), (assistant, answer), (user, "two")],
        [(system, "Be brief."), (user, "three")],
    ]


async def test_chat_from_a_pipe_ends_with_the_first_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    async with tier() as up:  # whose model has no chat template
        status, out, err = await beside(run, "chat", "--server", f"127.0.0.1:{up.port}")
    assert status == EXIT_BAD_CONFIG and out == ""
    one_line(err, "chat")


async def test_chat_on_a_terminal_goes_on_after_an_error_and_after_ctrl_c(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: list[Any] = ["too much", KeyboardInterrupt(), "fine", EOFError()]

    def type_in(prompt: str) -> str:
        item = typed.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", type_in)
    async with tier(max_message_bytes=8 << 20) as up:
        chat = ChatTier(up)
        answers = iter([[], [5]])
        encode = up.preprocessor.encode
        up.preprocessor.encode = lambda prompt, **_: encode(prompt) and next(answers)
        arguments = ("--server", f"127.0.0.1:{up.port}", "--max-tokens", "3", "--seed", "1")
        up.server._generation._resolve_sampling = _refuse_empty(up.server._generation._resolve_sampling)
        status, out, err = await beside(run, "chat", *arguments)
    assert status == 0 and not typed
    assert err == "\nforebay chat: the prompt is empty\n"
    assert out.splitlines()[0].startswith("tiny: ") and text_of(expected_tokens(1, 0, 3)) in out
    assert chat.conversations[-1] == [(2, "fine")]  # the turn that failed left no trace


def _refuse_empty(resolve: Any) -> Any:
    from forebay.errors import InvalidRequest

    def checked(params: Any, *, prompt_len: int, **facts: Any) -> Any:
        if not prompt_len:
            raise InvalidRequest("the prompt is empty")
        return resolve(params, prompt_len=prompt_len, **facts)

    return checked


async def test_health_says_it_with_the_exit_status(run: Any) -> None:
    async with tier(FakeExecutor()) as up:
        server = ("--server", f"127.0.0.1:{up.port}")
        assert await beside(run, "health", *server) == (0, "SERVING\n", "")
        assert (await beside(run, "health", *server, "--service", "forebay.v1.GenerationService"))[0] == 0
        status, _, err = await beside(run, "health", *server, "--service", "nonsense")
        assert status == 1 and "no service 'nonsense'" in one_line(err, "health")
        await up.executor.kill()
        await up.until_ready(0)
        assert await beside(run, "health", *server) == (1, "NOT_SERVING\n", "")
        assert (await beside(run, "health", *server, "--service", "liveness"))[0] == 0


# serve


def test_serve_does_not_start_where_another_server_listens(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        status, out, err = run("serve", MODEL, "--port", port)
    assert (status, out) == (EXIT_BAD_CONFIG, "")
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in one_line(err, "serve")


def test_the_tiers_of_serve_get_every_setting_through_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_USE_MODELSCOPE", "True")  # no setting: passed on
    monkeypatch.setenv("FOREBAY_MAX_NUM_SEQS", "5")  # a setting that a flag has overruled
    executor = ExecutorConfig(
        model="m", listen="127.0.0.1:1", hf_overrides={"rope_theta": 1.5, "a": ["b"]}, enable_prefix_caching=False,
        gpu_memory_utilization=0.5,
    )  # fmt: skip
    frontend = FrontendConfig(model="m", executors="127.0.0.1:1", served_model_name=("a", "b"), log_format="json")
    environment = _environment(executor, frontend)
    for config in (executor, frontend):
        variables = environment(config)
        assert read_config(type(config), argparse.Namespace(), variables) == config
        assert variables["FOREBAY_USE_MODELSCOPE"] == "True"
    assert dataclasses.replace(executor, max_num_seqs=7) == read_config(
        ExecutorConfig, argparse.Namespace(), environment(dataclasses.replace(executor, max_num_seqs=7))
    )
