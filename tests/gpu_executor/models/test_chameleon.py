"""Chameleon generates what transformers generates of the same pictures, and never a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model
from gpu_executor.models.towers.tower import TowerInput
from preprocess.json_files import read_json
from preprocess.media.decoded import Image
from tests.gpu_executor.models.media_cases import chameleon as cases
from tests.gpu_executor.models.media_checkpoints import (
    MediaCheckpoint,
    check_tokens,
    generate,
    picture,
    prompt_text,
    reference_tokens,
)

SIZES = [[(40, 32)], [(17, 61), (90, 33)]]


@pytest.mark.parametrize("checkpoint", [cases.CHAMELEON, cases.CHAMELEON_SWIN], ids=lambda c: c.case.name)
def test_pictures_become_tokens_of_the_vocabulary(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    reference = AutoProcessor.from_pretrained(tmp_path)
    prompts, wanted = [], []
    for sizes in SIZES:
        text = "".join(f"{number}<image>\n" for number in range(len(sizes))) + "What is it?"
        pictures = [picture(*size) for size in sizes]
        inputs = dict(reference(images=pictures, text=text, return_tensors="pt"))
        items = [ours.prepare(Image(pixels), len(sizes)) for pixels in pictures]
        prompts.append(ours.expand_text(prompt_text(text, tokenizer), items))
        assert prompts[-1].token_ids == inputs["input_ids"][0].tolist()
        wanted.append(reference_tokens(model, inputs))
    text_ids = tokenizer.encode("no picture at all", add_special_tokens=True)
    prompts.append(ours.expand_ids(text_ids, []))
    wanted.append(reference_tokens(model, {"input_ids": torch.tensor([text_ids])}))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(
        generate(tmp_path, prompts, max_num_batched_tokens=11, max_prefill_tokens_beside_decode=5, block_size=4), wanted
    )


def test_the_tower_gives_the_tokens_that_transformers_gives(tmp_path: Path) -> None:
    model = cases.CHAMELEON.write(tmp_path)
    ours, _ = cases.CHAMELEON.processor(tmp_path)
    image_processor = AutoProcessor.from_pretrained(tmp_path).image_processor
    decoder = load_model(
        tmp_path, read_json(tmp_path / "config.json"), dtype=torch.float32, device=torch.device("cpu"), progress=False
    )
    wanted = set()
    for seed in range(4):
        pixels = picture(50, 38, seed)
        with torch.no_grad():
            tokens = model.get_image_tokens(image_processor(pixels, return_tensors="pt")["pixel_values"])
            item = ours.prepare(Image(pixels), 1)
            tensors = {name: torch.from_numpy(array) for name, array in item.tensors.items()}
            (rows,) = decoder.encode_media([TowerInput("image", tensors)])
        assert torch.equal(rows, model.get_input_embeddings()(tokens[0]))
        wanted |= set(tokens[0].tolist())
    assert len(wanted) > 4
    hidden = torch.randn(3, 48)
    assert set(decoder.logits(hidden).isneginf().all(0).nonzero().flatten().tolist()) == set(range(300, 312))


def test_a_vocabulary_names_codes() -> None:
    config = {"architectures": [cases.CHAMELEON.case.architecture], **cases.CONFIG}
    spec = registry.resolve(ConfigReader(config)).spec
    assert spec.tower.token_ids[:3] == (300, 305, 310)
    names = {name: token_id for name, token_id in cases.VOCABULARY.items() if name != "IMGIMGBZ"}
    assert registry.resolve(ConfigReader(config | {"vocabulary_map": names})).spec.tower.token_ids[:3] == (300, 0, 310)
    for names, problem in (({"<image>": 3}, "without a code below 12"), ({"IMGIMGaZ": 3}, "a number in letters")):
        with pytest.raises(CheckpointError, match=problem):
            registry.resolve(ConfigReader(config | {"vocabulary_map": names}))
