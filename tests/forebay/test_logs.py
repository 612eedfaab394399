"""A log record is one line, whatever a client managed to get into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.logs import set_up_logging

FORGED = "x\n2026-01-01 00:00:00,000 INFO frontend: all is well"
HOSTILE = "a\nb\rc\x1b[2Jd\x00e\u2028f\x9bg\x85h\u202ei\ud800"


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(capsys: pytest.CaptureFixture[str], format: str, message: str, *arguments: object, **options: object) -> str:
    """What a warning writes to stderr."""
    set_up_logging("info", format)
    capsys.readouterr()
    logging.getLogger("frontend.test").warning(message, *arguments, **options)
    return capsys.readouterr().err


def test_text_line_has_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(capsys, "text", "%d requests from Köln 東京", 3)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING frontend\.test: 3 requests from Köln 東京\n", line
    )


def test_json_line_has_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(logged(capsys, "json", "%d requests from Köln 東京", 3))
    assert re.match(r"\d{4}-\d\d-\d\d ", entry.pop("time"))
    assert entry == {"level": "warning", "logger": "frontend.test", "message": "3 requests from Köln 東京"}


def test_control_characters_of_a_text_line_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(capsys, "text", "%s", HOSTILE)
    assert line.endswith("a\\nb\\rc\\x1b[2Jd\\x00e\\u2028f\\x9bg\\x85h\\u202ei\\ud800\n")


def test_json_line_with_a_traceback_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(capsys, "json", "it failed", exc_info=ValueError("bad\nvalue"))
    assert line.count("\n") == 1
    assert json.loads(line)["exception"] == "ValueError: bad\nvalue"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_level_says_what_is_logged(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level, "text")
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("frontend.test"), name)("said at %s", name)
    said = re.findall(r"said at (\w+)", capsys.readouterr().err)
    assert said == ["debug", "info", "warning", "error"][-len(said) :] and said[0] == level


def test_setting_up_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    assert logged(capsys, "text", "once").count("once") == 1


def test_control_characters_of_a_json_line_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(capsys, "json", "%s", HOSTILE)
    assert line.endswith("\n") and line[:-1].isprintable()
    assert json.loads(line)["message"] == HOSTILE


def test_message_of_an_exception_cannot_forge_a_line_or_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    first, *traceback = logged(capsys, "text", "it failed", exc_info=ValueError(f"{FORGED}\x1b[2J")).splitlines()
    assert first.endswith("WARNING frontend.test: it failed")
    assert traceback == [f"  ValueError: {FORGED.partition(chr(10))[0]}", f"  {FORGED.partition(chr(10))[2]}\\x1b[2J"]


@pytest.mark.parametrize("format", ["text", "json"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(message=st.text(st.characters(codec=None)))
def test_any_message_is_one_printable_line(format: str, capsys: pytest.CaptureFixture[str], message: str) -> None:
    line = logged(capsys, format, "%s", message)
    assert line.endswith("\n") and line[:-1].isprintable()
