"""Reward models give what their golden files say: offline, and through both tiers as processes, steps included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")

from forebay import LLM, Client
from tests.golden.materialize import FOLDER, materialize, read_golden
from tests.processes import serve

REWARDS = sorted(path.stem for path in FOLDER.glob("*.json") if read_golden(path.stem)["task"] == "reward")
TIMEOUT_S = 240.0


def _pooler(case: dict[str, Any]) -> dict[str, Any] | None:
    """What the operator says of the steps, where the golden has some."""
    override = {key: case[key] for key in ("step_tag_id", "returned_token_ids") if key in case}
    return override | {"pooling_type": "STEP"} if override else None


def _prompts(content: dict[str, Any]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": case["prompt_token_ids"]} for case in content["cases"]]


@pytest.mark.parametrize("name", REWARDS)
def test_offline_rewards(name: str, tmp_path: Path) -> None:
    content = read_golden(name)
    with LLM(
        str(materialize(content, tmp_path)), task="reward", dtype="float32", num_threads=1, disable_tqdm=True,
        kv_cache_memory_bytes=8 << 20, override_pooler_config=_pooler(content["cases"][0]),
    ) as llm:  # fmt: skip
        for output, case in zip(llm.encode(_prompts(content)), content["cases"], strict=True):
            np.testing.assert_allclose(output.outputs.data, case["rewards"], atol=1e-4)


def test_rewards_of_steps_through_both_tiers(tmp_path: Path) -> None:
    content = read_golden("Qwen2ForProcessRewardModel")
    folder = materialize(content, tmp_path)
    flags = ["--task", "reward", "--dtype", "float32", "--log-level", "warning"]
    flags += ["--override-pooler-config", json.dumps(_pooler(content["cases"][0]))]
    with serve(*flags, model=folder) as (_, address, _), Client(address, timeout=TIMEOUT_S) as client:
        for output, case in zip(client.reward(_prompts(content)).outputs, content["cases"], strict=True):
            np.testing.assert_allclose(output.data, case["rewards"], atol=1e-4)
