"""Qwen2-VL's processor makes what transformers' makes, from pictures, videos, embeddings, text and ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Audio, Embeddings, Image, Video
from preprocess.media_item import MediaItem
from preprocess.processors.processor import ProcessorFiles
from preprocess.processors.qwen2_vl import Qwen2VLProcessor
from tests.preprocess.processors.byte_tokenizer import chat_prompt, plain_prompt, text_tokenizer

CONTROLS = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
START, END, IMAGE, VIDEO = 1, 2, 3, 4
TOKENIZER = text_tokenizer(*CONTROLS)
CONFIG = {"hidden_size": 8, "image_token_id": IMAGE, "video_token_id": VIDEO}
SMALL = {"min_pixels": 8 * 8, "max_pixels": 40 * 40, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}


def processor(settings: dict[str, Any] = SMALL, config: dict[str, Any] = CONFIG, **files: Any) -> Qwen2VLProcessor:
    return Qwen2VLProcessor(ProcessorFiles(config, settings, files.pop("processor", {}), TOKENIZER, **files))


def picture(width: int, height: int, seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image(PilImages.fromarray(pixels))


def film(num_frames: int, width: int, height: int) -> Video:
    frames = np.random.default_rng(1).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return Video(frames, 2.0)


def patches(item: MediaItem, patch_size: int, merge_size: int) -> np.ndarray:
    """What the tower reads, cut as transformers cuts it: (patches, 3 * 2 * patch_size ** 2) float32."""
    scale, (mean, deviation) = item.tensors["normalization"][0], item.tensors["normalization"][1:].reshape(2, 3, 1, 1)
    pixels = (item.tensors["pixels"] * scale - mean) / deviation
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    t, (h, w) = len(pixels) // 2, (side // patch_size // merge_size for side in pixels.shape[2:])
    grid = pixels.reshape(t, 2, 3, h, merge_size, patch_size, w, merge_size, patch_size)
    return grid.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w * merge_size**2, -1)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SMALL, [(40, 24), (25, 61), (3, 5), (800, 9), (8, 8)]),
        ({"min_pixels": 3136, "max_pixels": 12845056}, [(640, 427), (20, 30)]),  # as Qwen2-VL's repositories have it
        ({"size": {"shortest_edge": 3136, "longest_edge": 50000}, "min_pixels": None}, [(300, 300)]),
        ({}, [(70, 50)]),
        ({"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0.01} | SMALL, [(33, 44)]),
        ({"do_normalize": False, "do_rescale": False} | SMALL, [(33, 44)]),
    ],
    ids=["small", "hub", "transformers-5", "no-file", "other-numbers", "bytes"],
)
def test_pictures_are_those_of_transformers(settings: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    keys = {key: value for key, value in settings.items() if value is not None}
    reference = Qwen2VLImageProcessorPil(**keys)
    for size in sizes:
        image = picture(*size)
        item = processor(settings).prepare(image, 1)
        wanted = reference(image.pixels, return_tensors="np")
        np.testing.assert_allclose(
            patches(item, reference.patch_size, reference.merge_size), wanted["pixel_values"], atol=1e-6, rtol=1e-6
        )
        (grid,) = wanted["image_grid_thw"].tolist()
        assert item.facts == (1, grid[1] // 2, grid[2] // 2)
        assert item.num_features == np.prod(item.facts)


def test_frames_of_a_video_get_the_size_of_pictures_and_go_in_pairs() -> None:
    video = film(5, 30, 21)
    item = processor().prepare(video, 1)
    single = [processor().prepare(Image(PilImages.fromarray(frame)), 1) for frame in video.frames]
    assert item.facts == (3, *single[0].facts[1:])
    assert item.num_features == 3 * single[0].num_features
    pictures = np.concatenate([one.tensors["pixels"] for one in single])
    np.testing.assert_allclose(item.tensors["pixels"].astype(int), pictures.astype(int), atol=1)  # torch's bytes, PIL's


def test_videos_may_have_settings_of_their_own() -> None:
    own = processor(video_preprocessor=SMALL | {"max_pixels": 64})
    assert own.prepare(film(2, 40, 40), 1).facts == (1, 1, 1)
    assert own.prepare(picture(40, 40), 1).facts == (1, 5, 5)
    nested = processor({}, processor={"image_processor": SMALL, "video_processor": SMALL | {"max_pixels": 64}})
    assert nested.prepare(film(2, 40, 40), 1).facts == (1, 1, 1)


@pytest.mark.parametrize("size", [(1, 201), (402, 2)], ids=str)
def test_a_picture_that_is_too_narrow_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="too narrow: the model takes ratios up to 200"):
        processor().prepare(picture(*size), 1)


def test_other_media_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        processor().prepare(Audio(np.zeros(3, np.float32), 16000), 1)
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        processor().accept(Embeddings("audio", (np.zeros((3, 8), np.float32),), {}))


def test_positions_of_text_and_items() -> None:
    made = processor()
    image, video = made.prepare(picture(24, 16), 1), made.prepare(film(6, 16, 8), 1)
    assert (image.facts, video.facts) == ((1, 2, 3), (3, 1, 2))
    prompt = plain_prompt(TOKENIZER, "ab<|vision_start|><|image_pad|><|vision_end|><|video_pad|>c")
    encoded = made.expand_text(prompt, [image, video])
    a, b, c = TOKENIZER.encode("abc", add_special_tokens=False)
    assert encoded.token_ids == [a, b, START, *[IMAGE] * 6, END, *[VIDEO] * 6, c]
    assert [placed.spans for placed in encoded.media] == [((3, 6),), ((10, 6),)]
    assert encoded.positions.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 7, 8, 8, 9, 9, 9],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 7, 7, 7, 7, 7, 9],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 7, 8, 7, 8, 9],
    ]


def test_items_of_two_kinds_may_come_in_any_order() -> None:
    made = processor()
    image, video = made.prepare(picture(24, 16), 1), made.prepare(film(6, 16, 8), 1)
    prompt = plain_prompt(TOKENIZER, "<|video_pad|>.<|image_pad|>")
    encoded = made.expand_text(prompt, [image, video])
    assert [(placed.item, placed.spans) for placed in encoded.media] == [(video, ((0, 6),)), (image, ((7, 6),))]
    assert encoded.positions[:, 7].tolist() == [3, 3, 3]


def test_ids_are_expanded_unless_they_are_already() -> None:
    made = processor()
    image = made.prepare(picture(24, 16), 1)
    short = made.expand_ids([9, START, IMAGE, END, 9], [image])
    whole = made.expand_ids([9, START, *[IMAGE] * 6, END, 9], [image])
    assert short.token_ids == whole.token_ids == [9, START, *[IMAGE] * 6, END, 9]
    np.testing.assert_array_equal(short.positions, whole.positions)
    with pytest.raises(InvalidRequest, match="have to lie together"):
        made.expand_ids([*[IMAGE] * 3, 9, *[IMAGE] * 3], [image])
    with pytest.raises(InvalidRequest, match="2 places for image items, and 1 are given"):
        made.expand_ids([IMAGE, 9, IMAGE], [image])


def test_a_prompt_of_text_alone_has_no_positions_of_its_own() -> None:
    encoded = processor().expand_text(plain_prompt(TOKENIZER, "ab"), [])
    assert (len(encoded.token_ids), encoded.media, encoded.positions) == (2, (), None)


def test_a_user_cannot_spell_a_place_for_media_in_a_chat() -> None:
    made = processor()
    image = made.prepare(picture(8, 8), 1)
    prompt = chat_prompt(TOKENIZER, made.chat_marker("image", 0) + "{}", "<|image_pad|>")
    encoded = made.expand_text(prompt, [image])
    assert encoded.token_ids == [
        START, IMAGE, END, *TOKENIZER.encode_user_text("<|image_pad|>", add_special_tokens=False),
    ]  # fmt: skip


def test_embeddings_need_their_grid() -> None:
    made = processor()
    rows = np.arange(10 * 8, dtype=np.float32).reshape(10, 8)
    grid = np.array([[1, 4, 6], [1, 4, 4]])
    first, second = made.accept(Embeddings("image", (rows,), {"image_grid_thw": grid}))
    assert (first.facts, second.facts) == ((1, 2, 3), (1, 2, 2))
    assert [first.num_features, second.num_features] == [6, 4]
    np.testing.assert_array_equal(second.tensors["embeddings"], rows[6:])
    (video,) = made.accept(Embeddings("video", (rows[:6],), {"video_grid_thw": np.array([[3, 2, 4]])}))
    assert (video.modality, video.facts) == ("video", (3, 1, 2))
    for extras, problem in (
        ({}, "image_grid_thw, which is missing"),
        ({"image_grid_thw": grid[:1]}, "have 10 rows; the items need 6"),
        ({"image_grid_thw": np.array([[1, 5, 6]])}, "multiples of 2"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            made.accept(Embeddings("image", (rows,), extras))


def test_a_checkpoint_whose_vocabulary_lacks_the_pad_is_named() -> None:
    with pytest.raises(CheckpointError, match="token 151,655 stands for an image; the vocabulary has none"):
        processor(config={"hidden_size": 8})
