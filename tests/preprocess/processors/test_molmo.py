"""Pictures of Molmo become the reference's crops, masks, places and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.client_requests import chat_prompt
from forebay.errors import InvalidRequest
from preprocess.chat import ChatTemplate
from preprocess.chat_messages import ChatMedia
from preprocess.media.decoded import Embeddings, Image
from preprocess.media_item import MediaItem
from preprocess.processors.molmo import Cropping
from preprocess.template_renderer import shared_renderer
from tests.golden.media_cases import (
    case_of,
    check_ids_expand_as_text,
    check_pixels,
    encode_case,
    images_of,
    items_of,
    media_golden,
    processor_of,
    prompt_text,
)

NAME, SIDE, PATCH = "MolmoForCausalLM", 84, 14


def patches_of(item: MediaItem) -> np.ndarray:
    """Patches of the whole picture and of the crops (1 + n, 36, 588), as the reference has them."""
    crops = [
        item.tensors["pixels"][:, top : top + SIDE, left : left + SIDE] for top, left in item.tensors["crop_starts"]
    ]
    pixels = np.stack([item.tensors["whole"], *crops])
    count = SIDE // PATCH
    patches = pixels.reshape(-1, 3, count, PATCH, count, PATCH).transpose(0, 2, 4, 3, 5, 1)
    return patches.reshape(len(pixels), count * count, -1)


@pytest.mark.parametrize("case", media_golden(NAME)["cases"], ids=lambda case: case["name"])
def test_prompts_and_pixels_are_the_references(case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(NAME), tmp_path)
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    wanted = case.get("processor")
    if wanted:
        (item,) = items_of(processor, case)
        check_pixels(patches_of(item), wanted["images (crops)"])
        check_pixels(item.tensors["image_masks"], wanted["image_masks"])
        places = item.tensors["image_input_idx"]
        places = np.where(places < 0, places, places + 1)  # behind the first token
        check_pixels(places, wanted["image_input_idx (positions include the leading token)"])


def test_ids_are_expanded_as_text_is(tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(NAME), "one image", tmp_path)


def test_pictures_are_resized_as_torch_does_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it is what resizes in the reference")
    processor, _ = processor_of(media_golden(NAME), tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (75, 84, 3), np.uint8)
    for height, width in ((84, 84), (40, 40), (200, 200)):
        found, seen = processor._padded(picture, height, width)
        tall = int(seen[:, 0].sum())
        floats = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        wanted = torch.nn.functional.interpolate(floats, (tall, width), mode="bilinear", antialias=True).clip(0, 1)
        wanted = (wanted[0].numpy() - processor._mean) / processor._std
        np.testing.assert_allclose(found[:, seen[:, 0]], wanted, atol=1e-4)  # torch places its filter in float32


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((336, 336), (1, 1)),
        ((100, 100), (1, 1)),
        ((50, 300), (1, 1)),
        ((900, 800), (4, 3)),
        ((4000, 1000), (6, 2)),
        ((500, 1000), (2, 4)),
    ],
)
def test_a_grid_is_filled_with_the_least_enlarging(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert Cropping(336, 14, 4, 4, 12).grid(*size) == grid


def test_cells_of_crops_cover_the_joined_picture_once() -> None:
    crops = Cropping(336, 14, 4, 4, 12)
    for count in (1, 2, 5):
        kept = crops.kept(count)
        assert sorted(kept[kept >= 0].tolist()) == list(range(8 * count + 4))  # 16 patches a crop, and 8 at the edges


def test_several_pictures_stand_one_behind_the_other(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, tokenizer = processor_of(golden, tmp_path)
    items = [items_of(processor, case_of(golden, name))[0] for name in ("one image", "tall image")]
    encoded = processor.expand_text(prompt_text(" User: both Assistant:", tokenizer), items)
    (first,), (second,) = (placed.spans for placed in encoded.media)
    assert first[0] == 1 and second[0] == sum(first)


def test_text_begins_with_a_space_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, tokenizer = processor_of(golden, tmp_path)
    case = case_of(golden, "text only")
    without = prompt_text(case["prompt"].removeprefix(" "), tokenizer)
    assert processor.expand_text(without, []).token_ids == case["input_ids"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden(NAME), tmp_path)
    with pytest.raises(InvalidRequest, match="1000 x 3 is too narrow for 84 x 84"):
        processor.prepare(Image(PilImages.new("RGB", (1000, 3))), 1)
    with pytest.raises(InvalidRequest, match="no precomputed image embeddings"):
        processor.accept(Embeddings("image", (np.zeros((4, 64), np.float32),), {}))


def test_a_picture_in_a_chat_leaves_no_line_in_its_message(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, tokenizer = processor_of(golden, tmp_path)
    case = case_of(golden, "one image")
    template = ChatTemplate(
        "{% for message in messages %}User: {{ message['content'] }}{% endfor %} Assistant:",
        tokenizer,
        shared_renderer(),
    )
    picture = {"type": "image", "image": images_of(case)[0].pixels}
    chat = chat_prompt([{"role": "user", "content": [picture, {"type": "text", "text": "near house"}]}]).chat
    rendered = template.prompt(chat, ChatMedia(("image",), [1], processor.chat_marker))
    assert rendered.text == "User: near house Assistant:"
    assert processor.expand_text(rendered.prompt, items_of(processor, case)).token_ids == case["input_ids"]
