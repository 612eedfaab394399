"""`forebay models` and `forebay describe`: what can be served, and what a checkpoint becomes, without reading a weight."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: these verbs need forebay[executor]")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch

from forebay.cli import main
from forebay.cli.describe import describe
from forebay.cli.models import family_rows
from forebay.errors import EXIT_BAD_CONFIG
from gpu_executor.config import ExecutorConfig
from gpu_executor.models.registry import Architecture, architectures
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import Case, all_cases, case_of, tiny_checkpoint
from tests.gpu_executor.quant.quantizers import Scheme, gptq, scheme_of
from tests.gpu_executor.quant.test_loading import write_both

MODEL = str(Path(__file__).parents[2] / "demo" / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; gives its exit status and what it printed to either stream."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def one_line(err: str) -> str:
    """The message of an error, which must be one line that begins with the program."""
    assert err.count("\n") == 1 and err.startswith("forebay describe: "), err
    return err


def test_models_lists_every_architecture(run: Any) -> None:
    _, listing, _ = run("models")
    _, table, _ = run("models", "--markdown")
    for found in architectures():
        assert re.search(rf"\b{found.name}\b", listing) and f"`{found.name}`" in table
    assert table.startswith(f"{len(architectures())} architectures in ")


def test_architectures_of_a_family_that_do_the_same_share_a_row() -> None:
    def found(name: str, family: str, examples: str, tasks: tuple[str, ...] = ("generate",)) -> Architecture:
        return Architecture(name, family, tasks, ("text",), examples, None)  # type: ignore[arg-type]

    rows = family_rows(
        [
            found("B", "two", "x"),
            found("A", "one", "p, q"),
            found("C", "one", "r"),
            found("E", "one", "p, q"),
            found("D", "one", "s", ("embed",)),
        ]
    )
    assert [(row.family, row.names, row.examples) for row in rows] == [
        ("one", ("A", "C", "E"), ("p, q", "r")), ("one", ("D",), ("s",)), ("two", ("B",), ("x",)),
    ]  # fmt: skip


def test_describe_shows_spec_weights_rules_and_memory(run: Any) -> None:
    status, out, _ = run("describe", MODEL)
    assert status == 0
    assert re.search(r"^layers\.0-3\.mixer\.q\.weight +256×256 +bfloat16 +column +512 KiB +\d+ +", out, re.MULTILINE)
    assert "model.layers.0-3.self_attn.q_proj.weight BF16" in out
    number = re.search(r"mixer\.q\.weight .* KiB +(\d+) ", out)[1]
    assert re.search(rf"^rule +{number}  .*self_attn.* → layers", out, re.MULTILINE)
    assert "Attention(num_heads=4, num_kv_heads=2, head_dim=64" in out and "layers 0-3" in out
    assert "3,903,744 parameters, 7.446 MiB in bfloat16" in out
    assert "2 KiB per token, 32 KiB per block of 16 tokens, 2 MiB for a sequence of 1,024" in out


def test_describe_counts_as_the_engine_does() -> None:
    config = ExecutorConfig(model=MODEL, dtype="float32", kv_cache_memory_bytes=8 << 20)
    engine, info = build_engine(config, progress=False)
    description = describe(config)
    shapes = {name: tuple(slot.shape) for name, slot in engine.runner.model.weights.slots.items()}
    assert {weight.name: weight.shape for weight in description.weights} == shapes
    assert info.num_blocks == (8 << 20) // (description.memory.bytes_per_token * 16)
    assert (description.memory.bytes_per_sequence, description.memory.windows) == (0, (None,))


@pytest.mark.parametrize(("name", "line"), [
    ("mistral-window", "384 B per token, 6 KiB per block of 16 tokens, 6 KiB for a window of 9"),
    ("gemma2", "768 B per token, 384 B once the window of 9 has passed, 6 KiB per block of 16 tokens in 2 layers, "
               "102 KiB for a sequence of 256"),
    ("cohere2", "640 B per token, 128 B once the window of 9 has passed, 2 KiB per block of 16 tokens in 1 layer, "
                "40 KiB for a sequence of 256"),
])  # fmt: skip
def test_describe_says_what_layers_that_slide_keep(run: Any, tmp_path: Path, name: str, line: str) -> None:
    tiny_checkpoint(next(case for case in all_cases() if case.name == name), tmp_path)
    status, out, _ = run("describe", str(tmp_path))
    assert status == 0 and f"KV cache  {line}" in out.splitlines()


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_describe_knows_every_model_by_its_tensors_and_by_its_config_alone(
    case: Case, run: Any, tmp_path: Path
) -> None:
    tiny_checkpoint(case, tmp_path)
    limit = () if case.max_model_len is None else ("--max-model-len", str(case.max_model_len))
    status, out, err = run("describe", str(tmp_path), *limit)
    assert status == 0, err
    assert "KV cache  " in out or "state     " in out
    status, alone, err = run("describe", str(tmp_path), *limit, "--load-format", "dummy", "--dtype", "float32")
    assert status == 0, err
    assert alone.splitlines()[0] == out.splitlines()[0] == f"architecture    {case.architecture}"
    assert "random" in alone and alone.splitlines()[-1] == out.splitlines()[-1]


def test_describe_can_show_every_layer_and_other_settings(run: Any) -> None:
    _, out, _ = run(
        "describe", MODEL, "--all-layers", "--dtype", "float32", "--max-model-len", "512", "--block-size", "32"
    )
    assert all(re.search(rf"^layers\.{i}\.mixer\.q\.weight +256×256 +float32", out, re.MULTILINE) for i in range(4))
    assert "block of 32 tokens" in out and "sequence of 512" in out


def test_layers_and_experts_that_are_equal_share_a_line(run: Any, tmp_path: Path) -> None:
    case = next(case for case in all_cases() if case.architecture == "MixtralForCausalLM")
    tiny_checkpoint(case, tmp_path)
    layers, experts = case.config["num_hidden_layers"] - 1, case.config["num_local_experts"] - 1
    _, out, _ = run("describe", str(tmp_path))
    assert len(re.findall(rf"^layers\.0-{layers}\.mlp\.experts\.0-{experts}\.up\.weight ", out, re.MULTILINE)) == 1
    _, out, _ = run("describe", str(tmp_path), "--all-layers")
    num_lines = len(re.findall(r"^layers\.\d+\.mlp\.experts\.\d+\.up\.weight ", out, re.MULTILINE))
    assert num_lines == (layers + 1) * (experts + 1)


def test_describe_reads_no_weights(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import torch

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr("gpu_executor.models.checkpoint.safe_open", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert run("describe", MODEL)[0] == 0


def test_describe_works_on_a_config_alone(run: Any, tmp_path: Path) -> None:
    shutil.copy(Path(MODEL) / "config.json", tmp_path)
    status, out, _ = run("describe", str(tmp_path), "--load-format", "dummy")
    assert status == 0 and "3,903,744 parameters" in out and "random" in out and "rule  1" not in out
    status, _, err = run("describe", str(tmp_path))
    assert status == EXIT_BAD_CONFIG and "has no weights" in one_line(err)


def test_describe_tells_which_tensor_is_missing_or_surplus(run: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copy(Path(MODEL) / "config.json", tmp_path)
    tensors = load_file(Path(MODEL) / "model.safetensors")
    norm = tensors.pop("model.layers.2.input_layernorm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    status, out, err = run("describe", str(tmp_path))
    assert status == EXIT_BAD_CONFIG and "no tensor for layers.2.norm1.weight" in one_line(err)
    assert re.search(r"^layers\.0-1,3\.norm1\.weight ", out, re.MULTILINE)
    save_file(tensors | {"model.layers.9.input_layernorm.weight": norm}, tmp_path / "model.safetensors")
    status, _, err = run("describe", str(tmp_path))
    assert status == EXIT_BAD_CONFIG and "model.layers.9.input_layernorm.weight would be" in one_line(err)


def test_describe_shows_how_matrices_are_quantized(run: Any, tmp_path: Path) -> None:
    written = write_both(tmp_path, case_of("llama"), scheme_of("gptq"))
    status, out, _ = run("describe", str(written.folder))
    assert status == 0
    assert re.search(r"^layers\.0-2\.mlp\.down\.weight +48×80 .* model\.layers\.0-2\.mlp\.down_proj\.weight int4 \(gptq\)$",
                     out, re.MULTILINE)  # fmt: skip
    assert "qweight" not in out and "scales" not in out


def test_describe_refuses_a_quantization_that_is_not_served(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scheme = Scheme("exl2", {"quant_method": "exl2"}, gptq())
    folder = write_both(tmp_path, case_of("llama"), scheme).folder
    capsys.readouterr()  # how transformers fared
    status, _, err = run("describe", str(folder))
    assert status == EXIT_BAD_CONFIG and "is quantized with exl2, which is not served" in one_line(err)


def test_the_engine_takes_the_dtype_that_describe_shows_where_the_config_has_none(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("llama"), tmp_path, dtype=torch.bfloat16)
    keys = json.loads((tmp_path / "config.json").read_text())
    del keys["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    config = ExecutorConfig(model=str(tmp_path), kv_cache_memory_bytes=1 << 23)
    engine, info = build_engine(config, progress=False)
    assert (info.dtype, engine.runner.model.dtype, describe(config).dtype) == (
        "bfloat16",
        torch.bfloat16,
        torch.bfloat16,
    )
