"""Qwen2-VL generates what transformers' model generates from the same pictures and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as PilImages
from safetensors.torch import load_file, save_file

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from preprocess.media.decoded import Image, Video
from preprocess.media_item import EncodedPrompt
from preprocess.processors.processor import Processor
from preprocess.processors.registry import load_processor
from tests.gpu_executor.models.checkpoints import Case, hub_tensors, tiny_model
from tests.gpu_executor.models.media_engine import embed, engine_of, generate
from tests.preprocess.processors.byte_tokenizer import plain_prompt, write_tokenizer
from tests.preprocess.processors.test_qwen2_vl import CONTROLS, IMAGE, SMALL, VIDEO, patches

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl", "vocab_size": 270, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32768,
    "max_window_layers": 28, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 3]}, "bos_token_id": 0,
    "eos_token_id": 0, "vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": IMAGE, "video_token_id": VIDEO,
    "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 3, "hidden_size": 48, "in_chans": 3,
                      "patch_size": 4, "spatial_merge_size": 2, "spatial_patch_size": 4, "temporal_patch_size": 2},
}  # fmt: skip
CASE = Case("qwen2-vl", "Qwen2VLForConditionalGeneration", CONFIG)


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return tiny_model(CASE)


@pytest.fixture(scope="module")
def folder(model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the hub has it: the text's keys beside vision_config, no language_model in names."""
    path = tmp_path_factory.mktemp("qwen2-vl")
    write_tokenizer(path, *CONTROLS)
    (path / "config.json").write_text(json.dumps({"architectures": [CASE.architecture], **CONFIG}))
    (path / "preprocessor_config.json").write_text(json.dumps(SMALL))
    save_file(hub_tensors(model, CASE), path / "model.safetensors")
    return path


def encoded(folder: Path, text: str, sizes: list[tuple[int, ...]]) -> tuple[EncodedPrompt, dict[str, Any]]:
    """A prompt, and what transformers' model takes beside its ids; a size is (width, height) or (frames, width, height)."""
    tokenizer = write_tokenizer(folder, *CONTROLS)
    processor: Processor = load_processor(folder, tokenizer)
    random = np.random.default_rng(len(text))
    items = []
    for size in sizes:
        pixels = random.integers(0, 256, (*size[:-2], size[-1], size[-2], 3), np.uint8)
        media = Video(pixels, 2.0) if len(size) == 3 else Image(PilImages.fromarray(pixels))
        items.append(processor.prepare(media, len(sizes)))
    prompt = processor.expand_text(plain_prompt(tokenizer, text), items)
    theirs: dict[str, Any] = {}
    for modality, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if mine := [item for item in items if item.modality == modality]:
            theirs[values] = torch.tensor(np.concatenate([patches(item, 4, 2) for item in mine]), dtype=torch.float32)
            theirs[grids] = torch.tensor([item.facts for item in mine]) * torch.tensor([1, 2, 2])
    return prompt, theirs


def inputs(token_ids: list[int]) -> dict[str, torch.Tensor]:
    """Ids as transformers' model takes them, with their modalities."""
    ids = torch.tensor([token_ids])
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPTS: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "one picture": (f"a{PICTURE}what?", [(40, 24)]),
    "two pictures": (f"{PICTURE}b{PICTURE}", [(16, 9), (24, 24)]),
    "a video of an odd number of frames": ("<|vision_start|><|video_pad|><|vision_end|>c", [(3, 24, 40)]),
    "a video longer than it is wide": ("ab<|video_pad|>cde", [(10, 16, 16)]),
    "a picture and a video": ("<|image_pad|>d<|video_pad|>e", [(24, 16), (4, 32, 16)]),
    "text": ("where is the picture?", []),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 16, "block_size": 4}], ids=["whole", "in-chunks"])
def test_it_generates_what_transformers_does(
    model: transformers.PreTrainedModel, folder: Path, options: dict[str, Any]
) -> None:
    prompts = {name: encoded(folder, *content) for name, content in PROMPTS.items()}
    results = generate(engine_of(folder, **options), [prompt for prompt, _ in prompts.values()])
    for (prompt, theirs), result in zip(prompts.values(), results, strict=True):
        with torch.inference_mode():
            logits = model(**inputs(prompt.token_ids + result.token_ids), **theirs).logits[0]
        result.check(prompt, logits)


def test_preempted_and_repeated_prompts_keep_their_positions(folder: Path) -> None:
    """What was generated is computed again behind positions that are no indexes, and blocks are shared with their media."""
    prompts = [encoded(folder, *content)[0] for content in PROMPTS.values()]
    wanted = generate(engine_of(folder), prompts)
    engine = engine_of(folder, block_size=4)
    for _ in range(2):  # the second time, blocks are found
        for found, expected in zip(generate(engine, prompts, preempt_every=4), wanted, strict=True):
            assert found.token_ids == expected.token_ids
    engine.scheduler.check()
    assert engine.scheduler.ledger.num_preemptions > 0


def test_both_layouts_of_names_and_config_give_the_same_model(
    model: transformers.PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    """transformers 4.52 and later wrote `model.language_model` and `model.visual`, and a text_config."""
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [CASE.architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("model.", "model.language_model.") if name.startswith("model.") else f"model.{name}": tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    prompt, _ = encoded(tmp_path, *PROMPTS["one picture"])
    assert generate(engine_of(tmp_path), [prompt]) == generate(engine_of(folder), [prompt])


def test_an_embedding_is_the_last_token_normalized(model: transformers.PreTrainedModel, folder: Path) -> None:
    """As DSE (Ma et al., 2024) takes it from pages and from questions."""
    prompts = [encoded(folder, *PROMPTS[name]) for name in ("one picture", "text")]
    found = embed(engine_of(folder, task="embed"), [prompt for prompt, _ in prompts])
    for (prompt, theirs), embedding in zip(prompts, found, strict=True):
        with torch.inference_mode():
            hidden = model.model(**inputs(prompt.token_ids), **theirs).last_hidden_state[0, -1]
        np.testing.assert_allclose(embedding, torch.nn.functional.normalize(hidden, dim=0), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": None}, r"must be a rope with an mrope_section of 3 axes"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 3]}}, r"mrope_section .* sum up to 6"),
        ({"vision_config": {"embed_dim": 42, "num_heads": 3}}, r"embed_dim of vision_config .* is 42"),
        ({"vision_config": {"hidden_act": "tanh"}}, r"hidden_act of vision_config .* is 'tanh'; it must be one of"),
    ],
    ids=["no-mrope", "sections", "heads", "activation"],
)
def test_a_config_that_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        registry.resolve(ConfigReader({"architectures": [CASE.architecture], **CONFIG, **changes}))
