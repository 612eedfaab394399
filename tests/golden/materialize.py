"""Turns a golden file into a checkpoint folder as the hub has it.

A golden file holds a small checkpoint and what a trusted reference computed with it, for architectures that
transformers does not contain. It names each tensor with its shape and how it is drawn: the values follow from the
golden's seed and the tensor's name alone, so nothing binary is stored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent


def read_golden(name: str) -> dict[str, Any]:
    """The golden of this name."""
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def materialize(golden: dict[str, Any], folder: Path) -> Path:
    """Writes the golden's files and weights, and gives the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: _draw(name, spec["shape"], spec.get("mean", 0.0), spec["std"], golden["seed"])
        for name, spec in golden["tensors"].items()
    }
    save_file(tensors, folder / golden.get("weights_file", "model.safetensors"), metadata={"format": "pt"})
    write_files(golden, folder)
    return folder


def write_files(golden: dict[str, Any], folder: Path) -> None:
    """Writes what a golden's checkpoint has beside its weights."""
    for name, content in golden["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def _draw(name: str, shape: list[int], mean: float, std: float, seed: int) -> np.ndarray:
    """float32 values, the same on every machine and independent of every other tensor."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return (mean + std * generator.standard_normal(shape)).astype(np.float32)
