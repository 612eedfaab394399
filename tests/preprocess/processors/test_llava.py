"""Llava's pictures and prompts are those of transformers' processors, for every form in which hub files write the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    PixtralImageProcessorPil,
    SiglipImageProcessorPil,
)

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.media_item import EMBEDDINGS, MediaItem
from preprocess.processors.processor import Processor
from preprocess.tokenizer import TextTokenizer
from tests.gpu_executor.models.media_cases import llava as cases
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint, picture, prompt_text

SIZES = [(28, 28), (57, 40), (16, 45), (90, 31), (5, 5)]
CLIP = cases.CLIP_FILES["preprocessor_config.json"]


def ours(checkpoint: MediaCheckpoint, folder: Path, **changes: Any) -> Processor:
    settings = changes or checkpoint.files["preprocessor_config.json"]
    checkpoint.write_files(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return checkpoint.processor(folder)[0]


def floats(item: MediaItem) -> np.ndarray:
    scale, rest = item.tensors["normalization"][0], item.tensors["normalization"][1:]
    mean, deviation = rest.reshape(2, -1, 1, 1)
    return (item.tensors["pixels"].astype(np.float32) * scale - mean) / deviation


def check(processor: Processor, reference: Any, images: list[PilImages.Image]) -> None:
    for image in images:
        item = processor.prepare(Image(image), 1)
        assert item.tensors["pixels"].dtype == np.uint8
        wanted = np.asarray(reference(image, return_tensors="np")["pixel_values"])[0]
        np.testing.assert_allclose(floats(item), wanted, rtol=0, atol=2e-6)


SETTINGS = {
    "released": CLIP,
    "numbers": {**CLIP, "size": 28, "crop_size": 28},
    "feature-extractor": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28, "resample": 2},
    "square": {**CLIP, "size": {"height": 30, "width": 29}},
    "small-then-padded": {**CLIP, "size": {"shortest_edge": 20}},
    "no-normalization": {**CLIP, "do_normalize": False, "rescale_factor": 0.5},
    "no-rescaling": {**CLIP, "do_rescale": False},
    "nulls": {**CLIP, "do_convert_rgb": None, "do_pad": None, "pad_size": None, "data_format": None, "device": None},
    "fast": {**CLIP, "image_processor_type": "CLIPImageProcessorFast"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_pictures_for_clip(settings: dict[str, Any], tmp_path: Path) -> None:
    check(
        ours(cases.LLAVA_CLIP, tmp_path, **settings),
        CLIPImageProcessorPil(**settings),
        [picture(*size) for size in SIZES],
    )


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "CMYK", "1"])
def test_pictures_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    check(ours(cases.LLAVA_CLIP, tmp_path), CLIPImageProcessorPil(**CLIP), [picture(40, 30, mode=mode)])


def test_pictures_that_llava_pads_to_squares(tmp_path: Path) -> None:
    settings = {**CLIP, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
    check(
        ours(cases.LLAVA_CLIP, tmp_path, **settings),
        LlavaImageProcessorPil(**settings),
        [picture(*size) for size in SIZES],
    )


def test_pictures_for_siglip(tmp_path: Path) -> None:
    settings = cases.SIGLIP_FILES["preprocessor_config.json"]
    reference = SiglipImageProcessorPil(**settings)
    check(ours(cases.LLAVA_SIGLIP, tmp_path), reference, [picture(*size) for size in SIZES])


def test_settings_that_transformers_5_saves(tmp_path: Path) -> None:
    cases.LLAVA_CLIP.write_files(tmp_path)
    reference = AutoProcessor.from_pretrained(tmp_path)
    reference.image_processor.resample = 2
    (tmp_path / "preprocessor_config.json").unlink()
    reference.save_pretrained(tmp_path)
    assert "image_processor" in json.loads((tmp_path / "processor_config.json").read_text())
    check(cases.LLAVA_CLIP.processor(tmp_path)[0], reference.image_processor, [picture(40, 57)])


@pytest.mark.parametrize("size", [(64, 48), (40, 20), (7, 33), (200, 61), (60, 61), (3, 3)], ids=str)
def test_pictures_for_pixtral_keep_their_shape(size: tuple[int, int], tmp_path: Path) -> None:
    processor = ours(cases.PIXTRAL_HF, tmp_path)
    reference = PixtralImageProcessorPil(**cases.PIXTRAL_FILES["preprocessor_config.json"])
    check(processor, reference, [picture(*size)])
    item = processor.prepare(Image(picture(*size)), 1)
    assert item.tensors["pixels"].shape[1:] == (item.facts[0] * 8, item.facts[1] * 8)


def test_a_picture_too_narrow_for_a_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a picture of 500 x 2 pixels is too narrow"):
        ours(cases.PIXTRAL_HF, tmp_path).prepare(Image(picture(500, 2)), 1)


def test_another_size_than_the_tower_takes_is_refused(tmp_path: Path) -> None:
    processor = ours(cases.LLAVA_CLIP, tmp_path, **{**CLIP, "crop_size": 14})
    with pytest.raises(InvalidRequest, match="makes 14 x 14 pixels; the vision tower takes 28 x 28"):
        processor.prepare(Image(picture(30, 30)), 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"size": {"longest_edge": 3}}, "size of preprocessor_config.json"),
        ({"resample": "bicubic"}, "resample of preprocessor_config.json"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type of preprocessor_config.json"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        ours(cases.LLAVA_CLIP, tmp_path, **{**CLIP, **changes})


@pytest.fixture
def llava(tmp_path: Path) -> tuple[Processor, TextTokenizer]:
    cases.LLAVA_CLIP.write_files(tmp_path)
    return cases.LLAVA_CLIP.processor(tmp_path)


def embeddings(*shapes: tuple[int, ...], **extras: list[list[int]]) -> Embeddings:
    values = tuple(np.zeros(shape, np.float32) for shape in shapes)
    return Embeddings("image", values, {name: np.array(value) for name, value in extras.items()})


@pytest.mark.parametrize("shapes", [[(2, 16, 48)], [(16, 48), (16, 48)], [(1, 16, 48), (16, 48)]], ids=str)
def test_embeddings_take_the_places_of_pictures(shapes: list[tuple[int, ...]], llava: Any) -> None:
    processor, tokenizer = llava
    items = processor.accept(embeddings(*shapes))
    prompt = processor.expand_text(prompt_text("<image>a<image>", tokenizer), items)
    assert prompt.token_ids == [1, *[3] * 16, *tokenizer.encode("a", add_special_tokens=False), *[3] * 16]
    assert [placed.spans for placed in prompt.media] == [((1, 16),), ((18, 16),)]
    assert prompt.media[0].item.tensors[EMBEDDINGS].shape == (16, 48)


@pytest.mark.parametrize("shape", [(15, 48), (2, 17, 48), (16, 47)], ids=str)
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, ...], llava: Any) -> None:
    with pytest.raises(InvalidRequest, match="image embeddings"):
        llava[0].accept(embeddings(shape))


def test_prompts_of_ids_may_be_expanded_already(llava: Any) -> None:
    processor, _ = llava
    items = processor.accept(embeddings((2, 16, 48)))
    short = processor.expand_ids([1, 3, 50, 3], items)
    assert short.token_ids == [1, *[3] * 16, 50, *[3] * 16]
    assert processor.expand_ids(short.token_ids, items).token_ids == short.token_ids
    with pytest.raises(InvalidRequest, match="3 places for image items, and 2 are given"):
        processor.expand_ids([3, 3, 3], items)


def test_mantis_numbers_its_pictures(tmp_path: Path) -> None:
    cases.LLAVA_SIGLIP.write_files(tmp_path)
    settings = cases.SIGLIP_FILES["preprocessor_config.json"] | {"processor_class": "MLlavaProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    released, tokenizer = cases.LLAVA_SIGLIP.processor(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["MantisForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = cases.LLAVA_SIGLIP.processor(tmp_path)[0]
    wanted = "".join(f"(image {number}: <Image>{'<image>' * 16}</Image>)," for number in (1, 2))
    for processor in (released, named):
        items = processor.accept(embeddings((2, 16, 48)))
        found = processor.expand_text(prompt_text("<image>,<image>,", tokenizer), items)
        assert found.token_ids == tokenizer.encode(wanted, add_special_tokens=True)
        comma = tokenizer.encode(",", add_special_tokens=False)
        assert processor.expand_ids([1, 3, *comma, 3, *comma], items).token_ids == found.token_ids


def test_embeddings_for_pixtral_need_their_sizes_unless_the_prompt_has_their_places(tmp_path: Path) -> None:
    cases.PIXTRAL_HF.write_files(tmp_path)
    processor, tokenizer = cases.PIXTRAL_HF.processor(tmp_path)
    for size in ([24, 16], [20, 10]):  # the picture's, or what became of it
        items = processor.accept(embeddings((6, 48), image_sizes=[size]))
        prompt = processor.expand_text(prompt_text("[IMG]", tokenizer), items)
        assert prompt.token_ids == [1, 3, 3, 3, 4, 3, 3, 3, 5]
        assert prompt.media[0].spans == ((1, 3), (5, 3))
    (item,) = processor.accept(embeddings((6, 48)))
    assert processor.expand_ids(prompt.token_ids, [item]).media[0].spans == ((1, 3), (5, 3))
    with pytest.raises(InvalidRequest, match="come with image_sizes"):
        processor.expand_text(prompt_text("[IMG]", tokenizer), [item])
    with pytest.raises(InvalidRequest, match="6 rows; the items need 12"):
        processor.accept(embeddings((6, 48), image_sizes=[[24, 32]]))


def test_a_token_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    cases.LLAVA_CLIP.write_files(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"image_token_index": 32000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="token 32,000 stands for an image"):
        cases.LLAVA_CLIP.processor(tmp_path)
