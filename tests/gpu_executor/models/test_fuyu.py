"""Fuyu generates what transformers generates from the same picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from preprocess.media.decoded import Image
from preprocess.media_item import EncodedPrompt
from tests.gpu_executor.models.media_cases.fuyu import FUYU
from tests.gpu_executor.models.media_checkpoints import check_tokens, generate, picture, prompt_text, reference_tokens

SPEAKER, NEWLINE, START, ANSWER = 3, 4, 1, 5
SIZES = [(20, 13), (100, 30), (48, 36)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("fuyu")
    return folder, FUYU.write(folder)


def prompts_of(folder: Path) -> list[EncodedPrompt]:
    ours, tokenizer = FUYU.processor(folder)
    return [
        ours.expand_text(prompt_text("what?", tokenizer), [ours.prepare(Image(picture(*size)), 1)]) for size in SIZES
    ]


def test_rows_of_patches_come_before_the_text(written: tuple[Path, Any]) -> None:
    """FuyuProcessor wants sentencepiece and torch: here the test cuts patches and writes ids."""
    folder, model = written
    _, tokenizer = FUYU.processor(folder)
    keys = FUYU.files["preprocessor_config.json"]
    theirs = FuyuImageProcessorPil(**{key: value for key, value in keys.items() if not key.endswith(("type", "class"))})
    prompts, wanted = prompts_of(folder), []
    for size, prompt in zip(SIZES, prompts, strict=True):
        made = theirs(picture(*size))
        rows = -(-made["image_unpadded_heights"][0][0] // 6)
        columns = -(-made["image_unpadded_widths"][0][0] // 6)
        patches = theirs.patchify_image(made["images"][0][0][:, : rows * 6, : columns * 6])
        ids = ([SPEAKER] * columns + [NEWLINE]) * rows + [
            START,
            *tokenizer.encode("what?", add_special_tokens=False),
            ANSWER,
        ]
        assert prompt.token_ids == ids
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.tensor(patches, dtype=torch.float32)[None]}
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(folder, prompts), wanted)
    check_tokens(generate(folder, prompts, max_num_batched_tokens=8, block_size=4), wanted)


def test_both_layouts_give_the_same_model(written: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = written
    FUYU.write_files(tmp_path)
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in config and "hidden_size" not in config
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [FUYU.case.architecture]}))
    stored = load_file(folder / "model.safetensors")
    assert "language_model.model.embed_tokens.weight" in stored
    renamed = {
        name.replace("language_model.lm_head.", "lm_head.")
        .replace("language_model.model.", "model.language_model.")
        .replace("vision_embed_tokens.", "model.vision_embed_tokens."): tensor
        for name, tensor in stored.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    assert generate(tmp_path, prompts_of(tmp_path)) == generate(folder, prompts_of(folder))
