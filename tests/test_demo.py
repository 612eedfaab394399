"""`make demo`: what a newcomer sees first works, and says what went wrong where it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: the demo's executor needs forebay[executor]")

from tests.processes import ROOT, free_port

# The demos' servers are not started beside each other.
pytestmark = pytest.mark.xdist_group("demo")

COMMAND = [sys.executable, str(ROOT / "demo" / "run.py")]


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )


def test_the_demo_prints_a_readable_completion_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = _run(folder=tmp_path)  # from wherever it is called
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    completion = re.search(r"^The with statement is used to(.*?)\n\ntime to first token", result.stdout, re.M | re.S)[1]
    words = re.findall(r"[a-z]+", completion)
    assert len(words) > 30 and {"the", "a", "statement"} <= set(words)
    assert completion.isascii() and re.search(r"then \d+ tokens/s \(96 tokens\)", result.stdout)
    assert "\033" not in result.stdout
    assert all(f"forebay {verb}" in result.stdout for verb in ("executor", "frontend", "serve", "generate", "chat"))
    listing = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    for address in re.findall(r"--listen (\S+)|--port (\d+)", result.stdout):
        assert not [line for line in listing.splitlines() if "forebay" in line and max(address) in line]


def test_the_demo_takes_a_prompt_of_ones_own(tmp_path: Path) -> None:
    result = _run("--prompt", "A generator is", "--max-tokens", "8", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^A generator is a coroutine object\.$", result.stdout, re.M)


def test_a_demo_that_fails_says_why_and_shows_the_logs(tmp_path: Path) -> None:
    code = (
        f"import socket, sys; sys.path.insert(0, {str(ROOT / 'demo')!r}); import run, servers; "
        f"held = socket.create_server(('127.0.0.1', {(port := free_port())})); "
        f"servers.free_ports = lambda count: [{port}] * count; sys.exit(run.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    assert "the demo failed: a server ended before it served" in result.stderr
    assert "--- executor.log" in result.stderr and "cannot listen on" in result.stderr
