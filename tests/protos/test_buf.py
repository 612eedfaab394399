"""buf has nothing to say about the protos: STANDARD and COMMENTS rules, and its formatting."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / ".tools" / "node_modules" / ".bin" / "buf"


@pytest.fixture(scope="module")
def buf() -> str:
    """The program; installed by `make tools`, or from PATH."""
    found = str(LOCAL) if LOCAL.exists() else shutil.which("buf")
    if found is None:
        pytest.skip("buf is not installed: run `make tools` (it takes npm)")
    return found


def _run(buf: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BUF_CACHE_DIR": str(cache)}
    return subprocess.run(
        [buf, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("command", [("lint",), ("format", "--diff", "--exit-code"), ("build",)], ids=lambda c: c[0])
def test_buf_finds_nothing(command: tuple[str, ...], buf: str, tmp_path: Path) -> None:
    result = _run(buf, *command, cache=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_would_find_something(buf: str, tmp_path: Path) -> None:
    (tmp_path / "protos").mkdir()
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    (tmp_path / "protos" / "bad.proto").write_text('syntax = "proto3";\nmessage undocumented {}\n', encoding="utf-8")
    result = subprocess.run(
        [buf, "lint"], cwd=tmp_path, env=os.environ | {"BUF_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "comment" in result.stdout and "package" in result.stdout
