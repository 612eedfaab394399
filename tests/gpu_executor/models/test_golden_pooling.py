"""Pooling models that transformers does not contain give what their golden files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_executor.request import PoolingParams
from tests.golden.materialize import FOLDER, materialize, read_golden
from tests.gpu_executor.models.pooling_run import engine_of, pool

GOLDENS = sorted(path.stem for path in FOLDER.glob("*.json") if read_golden(path.stem)["task"] != "generate")

# Alone, all at once, in chunks where the model allows them, and with a cache that knows the prompts.
WAYS = {
    "alone": {"max_num_seqs": 1},
    "together": {},
    "small-chunks-and-blocks": {"max_num_batched_tokens": 7, "max_num_seqs": 7, "block_size": 4},
    "without-cache": {"enable_prefix_caching": False},
}


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    content = read_golden(request.param)
    return content, materialize(content, tmp_path_factory.mktemp("golden"))


def _settings(golden: dict[str, Any]) -> dict[str, Any]:
    """What the operator says: the task, and the tokens of the steps where the golden names them."""
    case = golden["cases"][0]
    override: dict[str, Any] = {key: case[key] for key in ("step_tag_id", "returned_token_ids") if key in case}
    return {
        "task": golden["task"],
        "override_pooler_config": override | ({"pooling_type": "STEP"} if override else {}),
    }


@pytest.mark.parametrize("way", WAYS)
def test_pooled_rows(golden: tuple[dict[str, Any], Path], way: str) -> None:
    content, folder = golden
    options = dict(WAYS[way])
    if content["task"] == "embed":  # which reads a prompt whole
        options.pop("max_num_batched_tokens", None)
    engine = engine_of(folder, **_settings(content), **options)
    cases = content["cases"] * 3
    prompts = [case["prompt_token_ids"] for case in cases]
    for preempt_every in (0, 3):
        results = pool(engine, prompts, PoolingParams(content["task"]), preempt_every=preempt_every)
        for case, rows in zip(cases, results, strict=True):
            wanted = case.get("rewards") or [case["embedding"]]
            np.testing.assert_allclose(rows, wanted, atol=1e-4)
            if "score" in case:
                assert rows[-1].item() == pytest.approx(case["score"], abs=1e-4)


def test_probabilities(golden: tuple[dict[str, Any], Path]) -> None:
    content, folder = golden
    cases = [case for case in content["cases"] if "probs" in case]
    if not cases:
        pytest.skip("this golden has no probabilities")
    engine = engine_of(folder, **_settings(content))
    prompts = [case["prompt_token_ids"] for case in cases]
    for rows, case in zip(pool(engine, prompts, PoolingParams("reward", activation=True)), cases, strict=True):
        np.testing.assert_allclose(rows, case["probs"], atol=1e-4)
    settings = _settings(content)
    settings["override_pooler_config"]["softmax"] = True  # for requests that do not say
    for rows, case in zip(pool(engine_of(folder, **settings), prompts, PoolingParams("reward")), cases, strict=True):
        np.testing.assert_allclose(rows, case["probs"], atol=1e-4)
