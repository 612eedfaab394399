"""How hidden states are pooled follows the checkpoint's files, and what the operator overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import CheckpointError, NotOffered
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.pooler import Pooler, resolve_pooler
from gpu_executor.models.sentence_files import read_sentence_files
from gpu_executor.pooler_override import PoolerOverride
from gpu_executor.startup import choose_task
from tests.gpu_executor.models.checkpoints import BASE
from tests.gpu_executor.models.pooling_cases import ENCODER


def _write(folder: Path, steps: tuple[str, ...], pooling: dict[str, Any], limits: dict[str, Any] | None = None) -> Path:
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{step}" if i else "", "type": f"sentence_transformers.models.{step}"}
               for i, step in enumerate(steps)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if limits is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    return folder


def _pooler(
    folder: Path, architecture: str, task: str, override: dict[str, Any] | None = None, **config: Any
) -> Pooler:
    base = ENCODER if "layer_norm_eps" not in config and "ert" in architecture else BASE
    reader = ConfigReader(base | {"architectures": [architecture]} | config)
    override = PoolerOverride.read(override or {})
    spec = registry.resolve(reader, task, with_head=bool(override.returned_token_ids)).spec
    files = read_sentence_files(folder) if task == "embed" else None
    return resolve_pooler(folder, reader, spec, task, override, files)


def test_a_sentence_transformer_pools_as_its_files_say(tmp_path: Path) -> None:
    modes = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
             "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
    _write(tmp_path, ("Transformer", "Pooling"), modes, {"max_seq_length": 64, "do_lower_case": False})
    pooler = _pooler(tmp_path, "BertModel", "embed")
    assert (pooler.kind, pooler.normalize) == ("mean", False)
    assert read_sentence_files(tmp_path).max_tokens == 64


def test_vectors_are_normalized_where_the_files_list_that_step(tmp_path: Path) -> None:
    _write(tmp_path, ("Transformer", "Pooling", "Normalize"), {"pooling_mode_cls_token": True})
    pooler = _pooler(tmp_path, "BertModel", "embed")
    assert (pooler.kind, pooler.normalize) == ("cls", True)
    assert not _pooler(tmp_path, "BertModel", "embed", {"normalize": False}).normalize
    assert _pooler(tmp_path, "BertModel", "embed", {"pooling_type": "MEAN"}).kind == "mean"


@pytest.mark.parametrize(("named", "kind"), [("lasttoken", "last"), ("cls", "cls"), ("mean", "mean")])
def test_newer_files_name_one_mode(tmp_path: Path, named: str, kind: str) -> None:
    _write(tmp_path, ("Transformer", "Pooling"), {"embedding_dimension": 48, "pooling_mode": named})
    assert _pooler(tmp_path, "BertModel", "embed").kind == kind


@pytest.mark.parametrize(
    ("steps", "modes", "message"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_cls_token": True}, "lists Dense, which is not served"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pools max_tokens"),
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
         "pools cls_token and mean_tokens"),
    ],
)  # fmt: skip
def test_steps_that_are_not_served_are_named(
    tmp_path: Path, steps: tuple[str, ...], modes: dict[str, bool], message: str
) -> None:
    _write(tmp_path, steps, modes)
    with pytest.raises(NotOffered, match=message):
        read_sentence_files(tmp_path)


def test_files_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": ""}]')
    with pytest.raises(CheckpointError, match="lists no Pooling"):
        read_sentence_files(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json is not there"):
        read_sentence_files(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]')
    with pytest.raises(CheckpointError, match="with a folder of its own"):
        read_sentence_files(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "task", "expected"),
    [
        ("BertModel", "embed", ("cls", True, True)),
        ("LlamaForCausalLM", "embed", ("last", True, True)),
        ("LlamaForCausalLM", "reward", ("all", False, False)),
        ("LlamaForCausalLM", "classify", ("last", False, True)),
        ("GritLM", "embed", ("mean", True, True)),
        ("GritLM", "classify", ("last", False, True)),
        ("BertForSequenceClassification", "score", ("cls", False, True)),
    ],
)
def test_without_files_the_architecture_says(
    tmp_path: Path, architecture: str, task: str, expected: tuple[str, bool, bool]
) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    pooler = _pooler(tmp_path, architecture, task)
    assert (pooler.kind, pooler.normalize, pooler.activates) == expected


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"id2label": {"0": "a"}}, "sigmoid"),
        ({"id2label": {"0": "a", "1": "b"}}, "softmax"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "sigmoid"),
        (
            {"id2label": {"0": "a"}, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "identity",
        ),
        (
            {"id2label": {"0": "a"}, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            "identity",
        ),
    ],
    ids=["one-label", "labels", "independent-labels", "cross-encoder", "newer-cross-encoder"],
)
def test_scores_pass_the_activation_of_the_checkpoint(tmp_path: Path, config: dict[str, Any], activation: str) -> None:
    assert _pooler(tmp_path, "BertForSequenceClassification", "classify", **config).activation == activation


def test_an_activation_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sbert_ce_default_activation_function"):
        _pooler(tmp_path, "BertForSequenceClassification", "score", sbert_ce_default_activation_function="os.system")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"pooling": "CLS"}, "has 'pooling'; it knows pooling_type"),
        ({"pooling_type": "MAX"}, "pooling_type of override_pooler_config is 'MAX'; it must be one of CLS, LAST"),
        ({"normalize": 1}, "normalize of override_pooler_config is 1; it must be true or false"),
        ({"step_tag_id": -1}, "it must be a token id"),
        ({"returned_token_ids": [1, "2"]}, "it must be a list of token ids"),
    ],
)
def test_overrides_that_cannot_be_are_named(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolerOverride.read(override)


@pytest.mark.parametrize(
    ("architecture", "override", "message"),
    [
        ("LlamaForCausalLM", {"pooling_type": "STEP"}, "STEP needs a step_tag_id"),
        ("LlamaForCausalLM", {"pooling_type": "STEP", "step_tag_id": 199}, "token id 199 of the pooler is not below"),
        ("LlamaForCausalLM", {"returned_token_ids": [500]}, "token id 500 of the pooler is not below"),
        ("Qwen2ForProcessRewardModel", {}, "token id 151651 of the pooler is not below"),
    ],
)
def test_overrides_that_do_not_fit_the_model_are_named(
    tmp_path: Path, architecture: str, override: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _pooler(tmp_path, architecture, "reward", override)


@pytest.mark.parametrize("architecture", ["Qwen2ForRewardModel", "LlamaModel", "BertModel"])
def test_columns_of_a_head_that_is_not_there_are_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(NotOffered, match=f"{architecture} has no head over the vocabulary"):
        _pooler(tmp_path, architecture, "reward", {"returned_token_ids": [5]})


def test_the_task_follows_the_checkpoint(tmp_path: Path) -> None:
    def chosen(asked: str, architecture: str) -> str:
        found = registry.find(ConfigReader({"architectures": [architecture]}))
        return choose_task(asked, found, read_sentence_files(tmp_path))

    assert chosen("auto", "LlamaForCausalLM") == "generate"
    assert chosen("reward", "LlamaForCausalLM") == "reward"
    assert chosen("auto", "BertForSequenceClassification") == "score"
    _write(tmp_path, ("Transformer", "Pooling"), {"pooling_mode_lasttoken": True})
    assert chosen("auto", "LlamaForCausalLM") == "embed"
    assert chosen("generate", "LlamaForCausalLM") == "generate"
