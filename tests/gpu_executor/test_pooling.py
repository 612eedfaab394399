"""What the engine refuses of requests that pool, and what it does where a model or a prompt does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forebay.errors import Aborted, CheckpointError, ForebayError, InvalidRequest, NotOffered
from gpu_executor.engine import Engine
from gpu_executor.request import PoolingParams, Request, Sampling
from tests.gpu_executor.models.checkpoints import Case, case_of, tiny_checkpoint
from tests.gpu_executor.models.pooling_cases import CLASSIFY, EMBED
from tests.gpu_executor.models.pooling_run import engine_of, pool


def _case(name: str) -> Case:
    return next(case for case in (*EMBED, *CLASSIFY) if case.name == name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    cases = [_case("bert"), _case("bert-one-label"), _case("bert-three-labels"), _case("llama-base"), case_of("llama")]
    for case in cases:
        tiny_checkpoint(case, folder / case.name)
    return {case.name: folder / case.name for case in cases}


@pytest.fixture(scope="module")
def bert(folders: dict[str, Path]) -> Engine:
    return engine_of(folders["bert"])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "no tokens"),
        ([5, 199], {}, "token id 199 is not below"),
        ([5] * 131, {}, "the prompt has 131 tokens; the model takes 130"),
        ([5, 6, 7], {"token_type_ids": (0, 1)}, "2 token types for 3 tokens"),
        ([5, 6, 7], {"token_type_ids": (0, 1, 2)}, "a token type is not below 2"),
        ([5, 6, 7], {"dimensions": 0}, r"dimensions is 0; it must be in \[1, 48\]"),
        ([5, 6, 7], {"dimensions": 49}, r"dimensions is 49; it must be in \[1, 48\]"),
        ([5, 6, 7], {"num_instruction_tokens": 3}, "the instruction has 3 tokens, and the whole prompt 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_pooled_is_refused(
    bert: Engine, prompt: list[int], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        bert.add(Request(1, prompt, pooling=PoolingParams("embed", **params)))
    assert not bert.has_work


@pytest.mark.parametrize(
    ("name", "options", "task", "message"),
    [
        ("bert", {}, "reward", "serves embed, not reward"),
        ("bert", {}, None, "serves embed, not generate"),
        ("bert-one-label", {}, "embed", "serves classify and score, not embed"),
        ("bert-three-labels", {}, "score", "serves classify, not score"),
        ("llama", {}, "embed", "serves generate, not embed"),
        ("llama", {"task": "embed"}, None, "serves embed, not generate"),
    ],
)
def test_requests_of_other_tasks_are_refused(
    folders: dict[str, Path], name: str, options: dict[str, Any], task: str | None, message: str
) -> None:
    engine = engine_of(folders[name], **options)
    request = Request(1, [5, 6], Sampling(4)) if task is None else Request(1, [5, 6], pooling=PoolingParams(task))
    with pytest.raises(NotOffered, match=message):
        engine.add(request)


@pytest.mark.parametrize(
    ("name", "task", "error", "message"),
    [
        ("bert", "generate", NotOffered, "BertModel does not serve the task generate; it serves embed, reward"),
        ("bert-one-label", "reward", NotOffered, "does not serve the task reward"),
        ("llama", "score", NotOffered, "it serves generate, embed, classify, reward"),
        ("llama-base", "generate", NotOffered, "LlamaModel does not serve the task generate"),
    ],
)
def test_tasks_that_a_model_cannot_do_are_refused_at_the_start(
    folders: dict[str, Path], name: str, task: str, error: type[ForebayError], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine_of(folders[name], task=task)


def test_a_model_that_is_not_causal_cannot_generate(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="not causal: it cannot generate"):
        engine_of(folders["llama"], hf_overrides={"is_causal": False})


def test_a_prompt_that_one_step_cannot_take_is_refused_where_all_tokens_see_each_other(
    folders: dict[str, Path],
) -> None:
    engine = engine_of(folders["bert"], max_num_batched_tokens=100, max_num_seqs=8)
    with pytest.raises(InvalidRequest, match="101 tokens, which this model reads in one step; a step takes 100"):
        engine.add(Request(1, [5] * 101, pooling=PoolingParams("embed")))
    assert len(pool(engine, [[5] * 100, [6] * 60, [7] * 60], PoolingParams("embed"))) == 3


def test_values_that_are_not_numbers_end_their_requests(folders: dict[str, Path]) -> None:
    engine = engine_of(folders["bert"])
    engine.runner.model.weights.slots["embed.weight"][77] = np.nan
    for key, prompt in enumerate(([5, 6, 7], [5, 77, 7])):
        engine.add(Request(key, prompt, pooling=PoolingParams("embed")))
    output = engine.step()
    assert [pooled.request.key for pooled in output.pooled] == [0]
    assert [(request.key, type(error)) for request, error in output.failed] == [(1, Aborted)]
    assert not engine.has_work
    engine.scheduler.check()


def test_an_aborted_request_gives_nothing_more(folders: dict[str, Path]) -> None:
    engine = engine_of(folders["llama"], task="reward", max_num_batched_tokens=24)
    engine.add(Request("long", [5] * 60, pooling=PoolingParams("reward")))
    assert [len(pooled.rows) for pooled in engine.step().pooled] == [24]
    assert engine.abort("long")
    assert not engine.has_work and engine.scheduler.pool.num_used == 0


def test_any_causal_model_pools_what_it_is_asked_for(folders: dict[str, Path]) -> None:
    prompts = [[5, 6, 7, 8, 9], [10, 11]]
    raw = pool(engine_of(folders["llama"], task="reward"), prompts, PoolingParams("reward"))
    assert [rows.shape for rows in raw] == [(5, 48), (2, 48)]
    for rows, (vector,) in zip(
        raw, pool(engine_of(folders["llama"], task="embed"), prompts, PoolingParams("embed")), strict=True
    ):
        np.testing.assert_allclose(vector, rows[-1] / np.linalg.norm(rows[-1]), atol=1e-5)
    classes = pool(engine_of(folders["llama"], task="classify"), prompts, PoolingParams("classify"))
    for rows, (probabilities,) in zip(raw, classes, strict=True):
        exponentials = np.exp(rows[-1] - rows[-1].max())
        np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(), atol=1e-5)


def test_columns_of_the_vocabulary_s_head_can_be_asked_for(folders: dict[str, Path]) -> None:
    """The last row is the next token's logits, whose differences are those of its log-probabilities."""
    override = {"pooling_type": "ALL", "returned_token_ids": [33, 40, 7]}
    engine = engine_of(folders["llama"], task="reward", override_pooler_config=override)
    (rows,) = pool(engine, [[5, 6, 7]], PoolingParams("reward"))
    generating = engine_of(folders["llama"])
    generating.add(Request(1, [5, 6, 7], Sampling(1, logprobs=0, logprob_token_ids=(33, 40, 7))))
    logprobs = generating.step().tokens[0].logprobs.top_logprobs[-3:]
    np.testing.assert_allclose(np.diff(rows[-1]), np.diff(logprobs), atol=1e-4)


def test_a_mean_leaves_out_the_instruction(folders: dict[str, Path]) -> None:
    prompt = [5, 6, 7, 8, 9]
    every = {"task": "reward", "override_pooler_config": {"pooling_type": "ALL"}}
    (hidden,) = pool(engine_of(folders["bert"], **every), [prompt], PoolingParams("reward"))
    engine = engine_of(folders["bert"], override_pooler_config={"pooling_type": "MEAN"})
    (got,) = pool(engine, [prompt], PoolingParams("embed", normalize=False, num_instruction_tokens=2))
    np.testing.assert_allclose(got[0], hidden[2:].mean(0), atol=1e-5)


def test_a_checkpoint_without_its_head_cannot_give_columns_of_it(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama-base"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match=r"no tensor for head\.weight"):
        engine_of(tmp_path, task="reward", override_pooler_config={"returned_token_ids": [3]})
    (vector,) = pool(engine_of(tmp_path, task="embed"), [[5, 6, 7]], PoolingParams("embed"))
    assert np.linalg.norm(vector) == pytest.approx(1)
