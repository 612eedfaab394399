"""A checkpoint of a projector alone is served with the text and the audio model of the repositories that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: offline inference needs forebay[executor]")

from safetensors.torch import load_file, save_file  # noqa: E402

from forebay import LLM  # noqa: E402
from forebay.cli.describe import describe  # noqa: E402
from forebay.errors import CheckpointError, NotFound  # noqa: E402
from forebay.parts import find_parts, with_parts  # noqa: E402
from gpu_executor.config import ExecutorConfig  # noqa: E402
from gpu_executor.tower_runner import TowerRunner  # noqa: E402
from tests.forebay.test_llm_media import check, media_of, params_of  # noqa: E402
from tests.golden.materialize import materialize, read_golden  # noqa: E402
from tests.golden.media_cases import case_of, embeddings_of, encode_case, processor_of  # noqa: E402


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden in three folders, as Ultravox is released: beside the projector stand the names of the other two."""
    root = tmp_path_factory.mktemp("ultravox")
    whole = materialize(read_golden("media/UltravoxModel"), root / "whole")
    config = json.loads((whole / "config.json").read_text())
    stored = load_file(whole / "model.safetensors")
    text, audio = "language_model.", "audio_tower."
    texts = {name.removeprefix(text): tensor for name, tensor in stored.items() if name.startswith(text)}
    audios = {
        name.replace(audio, "model.encoder."): tensor for name, tensor in stored.items() if name.startswith(audio)
    }
    audios |= {"model.decoder.layer_norm.weight": torch.ones(3), "proj_out.weight": torch.ones(3, 3)}
    write(root / "text", config.pop("text_config"), texts)
    write(root / "audio", config.pop("audio_config") | {"architectures": ["WhisperForConditionalGeneration"]}, audios)
    config |= {"text_model_id": str(root / "text"), "audio_model_id": str(root / "audio")}
    (whole / "config.json").write_text(json.dumps(config))
    (whole / "model.safetensors").unlink()
    rest = {name: tensor for name, tensor in stored.items() if not name.startswith((text, audio))}
    save_file(rest, whole / "model.safetensors")
    return whole


def test_parts_generate_what_the_whole_does(folder: Path) -> None:
    golden = read_golden("media/UltravoxModel")
    prompts = [{"prompt": case["prompt"], "multi_modal_data": media_of(case)} for case in golden["cases"]]
    with LLM(str(folder), dtype="float32", kv_cache_memory_bytes=16 << 20, num_threads=1, disable_tqdm=True) as llm:
        outputs = llm.generate(prompts, [params_of(case) for case in golden["cases"]])
    for case, output in zip(golden["cases"], outputs, strict=True):
        check(case, output)


def test_a_description_knows_the_parts(folder: Path) -> None:
    found = describe(ExecutorConfig(model=str(folder)))
    assert found.missing == []
    sources = {weight.name: weight.source for weight in found.weights}
    assert sources["embed.weight"] == "model.embed_tokens.weight F32"
    assert sources["tower.encoder.conv1.weight"] == "model.encoder.conv1.weight F32"


def test_a_tower_by_itself_knows_the_parts(folder: Path) -> None:
    golden = read_golden("media/UltravoxModel")
    processor, tokenizer = processor_of(golden, folder.parent / "files")
    prompt = encode_case(processor, tokenizer, golden["cases"][0])
    runner = TowerRunner.load(folder, dtype="float32", device="cpu", num_threads=1)
    (placed,) = runner.encode_prompt(prompt).media
    wanted = embeddings_of(case_of(golden, "precomputed"), "audio").values[0]
    np.testing.assert_allclose(placed.item.tensors["embeddings"], wanted.reshape(13, 64), atol=1e-3)


def test_weights_of_the_checkpoint_itself_win(folder: Path, tmp_path: Path) -> None:
    """Versions that trained the encoder hold it, and name where it came from all the same."""
    audio = json.loads((folder / "config.json").read_text())["audio_model_id"]
    own = {
        name.replace("model.encoder.", "audio_tower."): tensor
        for name, tensor in load_file(Path(audio) / "model.safetensors").items()
        if "encoder" in name
    }
    write(
        tmp_path / "own",
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors") | own,
    )
    found = describe(ExecutorConfig(model=str(tmp_path / "own")))
    assert found.missing == []
    sources = {weight.name: weight.source for weight in found.weights}
    assert sources["tower.encoder.conv1.weight"] == "audio_tower.conv1.weight F32"


def test_a_part_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no folder .*nowhere"):
        find_parts({"text_model_id": str(tmp_path / "nowhere"), "audio_model_id": None})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no config\.json"):
        with_parts({}, find_parts({"text_model_id": str(tmp_path / "empty")}))


def test_a_config_that_names_no_part_stays_as_it_is() -> None:
    config = {"text_model_id": None, "text_config": {"hidden_size": 8}}
    assert find_parts(config) == {}
    assert with_parts(config, {}) == config


def test_what_stands_in_the_section_wins(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"text_config": {"rope_theta": 7.0}}
    merged = with_parts(config, find_parts(config))
    assert (merged["text_config"]["rope_theta"], merged["text_config"]["hidden_size"]) == (7.0, 64)
