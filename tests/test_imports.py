"""Each tier loads its own libraries alone, and our `kernels` is not mistaken for the package of that name on PyPI."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _loaded(statement: str, *names: str) -> list[str]:
    """Which of these modules a fresh interpreter has after the statement."""
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import frontend.main",
        "import frontend.server, frontend.detokenizer, frontend.sampling",
        "import preprocess.preprocessor, preprocess.chat, preprocess.template_worker",
        "from preprocess.preprocessor import Preprocessor; from pathlib import Path; "
        "Preprocessor.load(Path('demo/model')).tokenizer",
        "import forebay.client, forebay.aio_client",
    ],
    ids=["frontend.main", "frontend", "preprocess", "loaded-preprocessor", "forebay.client"],
)
def test_the_cpu_tier_loads_neither_torch_nor_the_gpu_tier(statement: str) -> None:
    assert _loaded(statement, "torch", "triton", "gpu_executor", "kernels") == []


def test_the_executor_loads_neither_text_nor_the_cpu_tier() -> None:
    statement = "import gpu_executor.main, gpu_executor.service, gpu_executor.startup"
    assert _loaded(statement, "transformers", "tokenizers", "jinja2", "frontend", "preprocess") == []


def test_what_is_asked_for_would_be_seen() -> None:
    assert _loaded("import torch", "torch") == ["torch"]


def test_transformers_does_not_take_our_kernels_for_a_package_of_that_name() -> None:
    utils = pytest.importorskip("transformers.utils", reason="transformers is not installed")
    import kernels.linear  # noqa: F401

    assert not utils.is_kernels_available()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_only_one_module_of_the_cpu_tier_speaks_http() -> None:
    """What fetches what people name is checked in one place (preprocess/media/fetch.py)."""
    clients = {"http", "urllib.request", "httpx", "httpx2", "requests", "aiohttp", "urllib3"}
    found = set()
    for path in [*(ROOT / "preprocess").rglob("*.py"), *(ROOT / "frontend").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if any(name == client or name.startswith(f"{client}.") for name in names for client in clients):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"preprocess/media/fetch.py"}
