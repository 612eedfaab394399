"""What Python users have of media -> Media messages, without losing a bit of it, and without torch or Pillow where none is used."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forebay.client_media import to_media
from forebay.client_requests import chat_prompt, to_prompt, to_prompts
from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from preprocess.media.limits import MediaLimits
from preprocess.media.samples import read_embeddings, read_samples
from preprocess.media.tensor_codec import to_array

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
ROWS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
ANY, NUMBERS = tuple(media_pb2.TensorType.values()), range(1, 5)


def media(modality: str, value: Any) -> list[media_pb2.Media]:
    return to_media({modality: value}, "multi_modal_data")


def one(modality: str, value: Any) -> media_pb2.Media:
    (found,) = media(modality, value)
    return found


def samples(message: media_pb2.Media) -> np.ndarray:
    return to_array(message.samples, ANY, NUMBERS)


def refused(modality: str, value: Any) -> str:
    with pytest.raises(InvalidRequest) as raised:
        media(modality, value)
    return raised.value.message


def test_a_picture_of_pillow_keeps_its_pixels() -> None:
    found = one("image", Image.fromarray(PIXELS))
    assert found.kind == media_pb2.MEDIA_KIND_IMAGE and np.array_equal(samples(found), PIXELS)
    assert np.array_equal(samples(one("image", Image.fromarray(PIXELS[..., 0]))), PIXELS[..., 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_a_picture_of_another_mode_travels_as_png(mode: str) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    found = Image.open(io.BytesIO(one("image", picture).data))
    assert found.format == "PNG" and found.mode == mode and found.tobytes() == picture.tobytes()


def test_a_palette_with_transparency_keeps_both() -> None:
    picture = Image.fromarray(PIXELS).quantize(4)
    picture.info["transparency"] = 2
    found = Image.open(io.BytesIO(one("image", picture).data))
    assert np.array_equal(np.asarray(found.convert("RGBA")), np.asarray(picture.convert("RGBA")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "I", "F"])
def test_a_mode_that_png_does_not_know_becomes_rgb(mode: str) -> None:
    picture = Image.fromarray(PIXELS).convert("L" if mode in "IF" else "RGB").convert(mode)
    assert np.array_equal(samples(one("image", picture)), np.asarray(picture.convert("RGB")))


def test_a_note_that_turns_a_picture_does_not_travel() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert("RGBA").save(file, "PNG", exif=exif)
    found = Image.open(io.BytesIO(one("image", Image.open(file)).data))
    assert found.getexif().get(0x0112) is None and found.size == (6, 4)


def test_arrays_of_pixels_are_pictures_wherever_their_channels_are() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    first = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    for value in (PIXELS, first, torch.from_numpy(PIXELS), torch.from_numpy(first), np.asfortranarray(PIXELS)):
        assert np.array_equal(samples(one("image", value)), PIXELS)
    assert np.array_equal(samples(one("image", PIXELS[..., 0])), PIXELS[..., 0])


def test_many_pictures_are_many_items() -> None:
    for value in ([PIXELS, PIXELS], (PIXELS, Image.fromarray(PIXELS)), FRAMES[:2]):
        assert [samples(item).shape for item in media("image", value)] == [(4, 6, 3)] * 2


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (FRAMES, None),
        ((FRAMES, 2.5), 2.5),
        ((FRAMES, 2), 2.0),
        ((FRAMES, {"fps": 2.5}), 2.5),
        ((FRAMES, {"fps": 24.0, "total_num_frames": 60, "frames_indices": [0, 12, 24, 36, 48]}), 2.0),
        (list(FRAMES), None),
        ([Image.fromarray(frame) for frame in FRAMES], None),
        (([Image.fromarray(frame) for frame in FRAMES], 4.0), 4.0),
        (np.ascontiguousarray(FRAMES.transpose(0, 3, 1, 2)), None),
    ],
    ids=["array", "fps", "whole-fps", "metadata", "sampled", "list", "pictures", "pictures-fps", "channels-first"],
)
def test_one_video(value: Any, rate: float | None) -> None:
    found = one("video", value)
    assert found.kind == media_pb2.MEDIA_KIND_VIDEO and np.array_equal(samples(found), FRAMES)
    assert (found.frames_per_second if found.HasField("frames_per_second") else None) == rate


def test_many_videos() -> None:
    for value in ([FRAMES, FRAMES], [(FRAMES, 2.0), (FRAMES, 3.0)], np.stack([FRAMES, FRAMES])):
        assert [samples(item).shape for item in media("video", value)] == [(5, 4, 6, 3)] * 2


@pytest.mark.parametrize(
    ("value", "rate", "wanted"),
    [
        (np.array([0, 0.5, -1], np.float32), None, [0, 0.5, -1]),
        (np.array([0, 0.5, -1], np.float64), None, [0, 0.5, -1]),
        (([0.0, 0.5, -1.0], 8_000), 8_000, [0, 0.5, -1]),
        ([0.0, 0.5, -1.0], None, [0, 0.5, -1]),
        ((np.array([0, 16_384, -32_768], np.int16), 44_100), 44_100, [0, 0.5, -1]),
        ((np.array([[0, 1, -1], [0, 0, -1]], np.float32), 16_000), 16_000, [0, 0.5, -1]),
        ((np.array([[0, 1, -1], [0, 0, -1]], np.float32).T, np.int64(16_000)), 16_000, [0, 0.5, -1]),
        ((np.array([0, 0.5, -1], np.float32), 16_000.0), 16_000, [0, 0.5, -1]),
    ],
    ids=["array", "float64", "list-and-rate", "list", "int16", "channels-first", "channels-last", "rate-in-floats"],
)
def test_one_sound(value: Any, rate: int | None, wanted: list[float]) -> None:
    found = one("audio", value)
    assert samples(found).dtype == np.float32 and samples(found).tolist() == wanted
    assert (found.sample_rate if found.HasField("sample_rate") else None) == rate


def test_many_sounds() -> None:
    for value in ([(ROWS[0], 16_000), (ROWS[1], 8_000)], [ROWS[0], ROWS[1]]):
        assert [samples(item).tolist() for item in media("audio", value)] == [ROWS[0].tolist(), ROWS[1].tolist()]


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_are_embeddings(modality: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rows = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    for value, shapes in (
        (rows, [(3, 4)]),
        (torch.stack([rows, rows]), [(2, 3, 4)]),
        ([rows, rows[:2]], [(3, 4), (2, 4)]),
        ({f"{modality}_embeds": rows}, [(3, 4)]),
        ({f"{modality}_embeds": [rows, rows[:1]]}, [(3, 4), (1, 4)]),
    ):
        found = read_embeddings(one(modality, value).embeddings, modality)
        assert [array.shape for array in found.values] == shapes
        assert np.array_equal(found.values[0].reshape(-1, 4)[:3], rows.to(torch.float32).numpy())


@pytest.mark.parametrize(
    "grid", [[[1, 2, 2], [1, 2, 4]], np.array([[1, 2, 2], [1, 2, 4]]), np.array([[1, 2, 2], [1, 2, 4]], np.int32)]
)
def test_embeddings_come_with_what_the_model_needs_beside_them(grid: Any) -> None:
    found = read_embeddings(
        one("image", {"image_embeds": ROWS, "image_grid_thw": grid, "image_sizes": (6, 4)}).embeddings, "image"
    )
    assert found.extras["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]
    assert found.extras["image_sizes"].tolist() == [[6, 4]]


def test_files_travel_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"file")
    for value in (
        b"file",
        bytearray(b"file"),
        tmp_path / "x",
        "data:image/png;base64," + base64.b64encode(b"file").decode(),
    ):
        assert one("image", value).data == b"file"
    assert one("image", "https://example.com/x.png").url == "https://example.com/x.png"
    assert [item.data for item in media("audio", [b"a", b"b"])] == [b"a", b"b"]
    message = media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, digest=b"d")
    assert one("image", message) is message


def test_what_is_sent_is_what_a_server_reads() -> None:
    found = read_samples(one("audio", (ROWS[0], 8_000)), "audio", MediaLimits(), None)
    assert found.sample_rate == 8_000 and np.array_equal(found.samples, ROWS[0])


@pytest.mark.parametrize(
    ("modality", "value", "words"),
    [
        ("picture", PIXELS, "has the key 'picture'; it can have image, video, audio"),
        ("image", 5, "['image'] is a int, which is no form of image items"),
        ("image", [PIXELS, object()], "['image'][1] is a object"),
        ("image", "/etc/passwd", "must be a data: or https: URL"),
        ("image", "http://example.com/x.png", "must be a data: or https: URL"),
        ("image", "data:image/png;base64,!!", "is not base64"),
        ("image", "data:image/png,abc", "is a data: URL that is not base64"),
        ("image", PIXELS / 255, "is an array of float64; pixels are uint8"),
        ("image", PIXELS.astype(np.int64), "is an array of int64; pixels are uint8"),
        ("image", PIXELS[..., :2], "has the shape [4, 6, 2]"),
        ("image", {"image_embeds": ROWS, "grid": 1}, "has the key grid; it can have image_embeds and image_grid_thw"),
        ("image", {"image_grid_thw": ROWS}, "has no image_embeds"),
        ("image", {"image_embeds": "x"}, "must be an array or a list of arrays"),
        ("image", {"image_embeds": PIXELS}, "is an array of uint8; embeddings are floats"),
        ("image", {"image_embeds": ROWS, "image_sizes": [[1, 2], [3]]}, "must be rows of whole numbers"),
        ("image", {"image_embeds": ROWS, "image_sizes": [[1.5, 2]]}, "must be rows of whole numbers"),
        ("video", PIXELS, "it can be (frames, height, width, 3)"),
        ("video", [PIXELS, PIXELS[:2]], "must be frames of one size"),
        ("video", (FRAMES, {"fps": "fast"}), "has the rate 'fast'"),
        ("audio", PIXELS[..., 0], "sound is (samples,) or (samples, rate)"),
        ("audio", (ROWS[0], -1), "has the rate -1"),
        ("audio", (["a", "b"], 16_000), "must be samples"),
    ],
)
def test_what_is_no_media_says_what_can_be(modality: str, value: Any, words: str) -> None:
    assert words in refused(modality, value)


def test_dictionaries_of_vllm_become_prompts() -> None:
    data = {"image": [PIXELS, PIXELS], "audio": ROWS[0], "video": None}
    found = to_prompt({"prompt": "<image>", "multi_modal_data": data})
    assert found.text == "<image>" and found.parse_special_tokens
    assert [item.kind for item in found.media] == [media_pb2.MEDIA_KIND_IMAGE] * 2 + [media_pb2.MEDIA_KIND_AUDIO]
    found = to_prompt({"prompt_token_ids": [1, 2], "prompt": None, "multi_modal_data": {"image": PIXELS}})
    assert list(found.token_ids.ids) == [1, 2] and len(found.media) == 1 and not found.parse_special_tokens


def test_special_tokens_of_a_text_are_parsed_where_it_is_in_the_models_own_format() -> None:
    assert not to_prompt("x").parse_special_tokens
    assert not to_prompt({"prompt": "x"}).parse_special_tokens
    assert not to_prompt({"prompt": "x", "multi_modal_data": {}}).parse_special_tokens
    assert to_prompt({"prompt": "x", "parse_special_tokens": True}).parse_special_tokens
    assert not to_prompt(
        {"prompt": "x", "multi_modal_data": {"image": PIXELS}, "parse_special_tokens": False}
    ).parse_special_tokens
    own = to_prompts(
        ["x", {"prompt": "x"}, {"prompt": "x", "parse_special_tokens": False}, [1]], parse_special_tokens=True
    )
    assert [prompt.parse_special_tokens for prompt in own] == [True, True, False, False]


PNG = base64.b64encode(b"file").decode()
PARTS = {
    "image_url": ({"url": f"data:image/png;base64,{PNG}", "detail": "auto"}, media_pb2.MEDIA_KIND_IMAGE),
    "video_url": ({"url": f"data:video/mp4;base64,{PNG}"}, media_pb2.MEDIA_KIND_VIDEO),
    "audio_url": (f"data:audio/wav;base64,{PNG}", media_pb2.MEDIA_KIND_AUDIO),
    "input_audio": ({"data": PNG, "format": "wav"}, media_pb2.MEDIA_KIND_AUDIO),
    "image": (b"file", media_pb2.MEDIA_KIND_IMAGE),
    "video": (b"file", media_pb2.MEDIA_KIND_VIDEO),
    "audio": (b"file", media_pb2.MEDIA_KIND_AUDIO),
}


@pytest.mark.parametrize("kind", PARTS)
def test_content_parts_of_a_chat(kind: str) -> None:
    value, wanted = PARTS[kind]
    prompt = chat_prompt(
        [{"role": "user", "content": ["Look", {"type": kind, kind: value}, {"type": "text", "text": "?"}]}]
    )
    first, middle, last = prompt.chat.messages[0].content
    assert (first.text, last.text) == ("Look", "?")
    assert (middle.media.kind, middle.media.data) == (wanted, b"file")


def test_content_parts_take_what_prompts_take() -> None:
    parts = [
        {"type": "image", "image": Image.fromarray(PIXELS)},
        {"type": "audio", "audio": (ROWS[0], 8_000)},
        {"type": "image_embeds", "image_embeds": ROWS},
        {"type": "image_embeds", "image_embeds": {"image_embeds": ROWS, "image_sizes": [[1, 2]]}},
        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
    ]
    content = chat_prompt([{"role": "user", "content": parts}]).chat.messages[0].content
    assert [part.media.WhichOneof("content") for part in content] == [
        "samples",
        "samples",
        "embeddings",
        "embeddings",
        "url",
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": 5}},
        {"type": "image", "image": [PIXELS, PIXELS]},
        {"type": "image", "image": PIXELS, "uuid": "x"},
        {"type": "picture", "picture": PIXELS},
        {"type": ["image"], "image": PIXELS},
        {"type": "image_embeds", "image_embeds": "base64"},
    ],
)
def test_a_part_that_is_none_is_refused_by_its_place(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat_prompt([{"role": "user", "content": ["x", part]}])
    assert raised.value.message.startswith("messages[0].content[1]")


def test_the_client_imports_nothing_for_media() -> None:
    code = (
        "import sys, forebay.client, forebay.client_media as m;"
        "m.to_media({'image': [b'x'], 'audio': ([0.5, 1.0], 16000)}, 'data');"
        "print(*[name for name in ('numpy', 'torch', 'PIL', 'av', 'soundfile') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
