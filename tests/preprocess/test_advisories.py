"""What advisories report of media and prompts in other servers does not happen here, seen from a whole preprocessor.

Each test names its advisory. What guards it has tests of its own: media/test_fetch.py, media/test_image.py, media/test_video.py,
media/test_audio.py, media/test_tensor_codec.py, processors/test_every_picture.py, test_template_renderer.py.
"""

from __future__ import annotations

import ast
import json
import re
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as PilImages

import forebay
from forebay.client_requests import chat_prompt, to_prompt
from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2, prompt_pb2
from preprocess.media.fetch import UrlFetcher
from preprocess.media.limits import MediaLimits
from preprocess.media.settings import MediaSettings
from preprocess.media_item import EncodedPrompt
from preprocess.preprocessor import Preprocessor
from tests.golden.materialize import read_golden, write_files
from tests.preprocess.media.files import chunk_of_text, picture_file, png_header, reason_of, saved, video_file
from tests.preprocess.processors.byte_tokenizer import write_tokenizer

CONTROLS = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE_PAD = 3
MARKER = "<|vision_start|><|image_pad|><|vision_end|>"
FILM = MARKER.replace("image", "video")
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
WIDTH = 8  # of the text model's embeddings
CONFIG = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": WIDTH,
    "image_token_id": IMAGE_PAD, "video_token_id": 4, "vision_start_token_id": 1, "vision_end_token_id": 2,
    "vision_config": {"spatial_merge_size": 2, "patch_size": 4, "temporal_patch_size": 2},
}  # fmt: skip
PROCESSOR = {"min_pixels": 64, "max_pixels": 1_600, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    + MARKER
    + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def write_model(folder: Path, **config: Any) -> Path:
    """A checkpoint that sees pictures and videos, without weights."""
    write_tokenizer(folder, *CONTROLS)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def preprocessor(folder: Path) -> Preprocessor:
    return Preprocessor.load(folder)


def with_image(image: Any, text: str = MARKER) -> prompt_pb2.Prompt:
    return to_prompt({"prompt": text, "multi_modal_data": {"image": image}, "parse_special_tokens": True})


def refused(preprocessor: Preprocessor, prompt: prompt_pb2.Prompt) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        preprocessor.encode_prompt(prompt)
    return raised.value


def check_places(encoded: EncodedPrompt) -> None:
    """Every token that stands for a feature has one, and every feature its token."""
    rows = [row for placed in encoded.media for start, length in placed.spans for row in range(start, start + length)]
    assert rows == [index for index, token_id in enumerate(encoded.token_ids) if token_id == IMAGE_PAD]
    assert len(rows) == sum(placed.item.num_features for placed in encoded.media)


def test_cve_2024_8768_an_empty_prompt_is_refused(preprocessor: Preprocessor) -> None:
    for prompt in (prompt_pb2.Prompt(text=""), prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds()), prompt_pb2.Prompt()):
        assert reason_of(refused(preprocessor, prompt)) == "EMPTY_PROMPT"


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
def test_cve_2025_46560_placeholders_are_expanded_in_linear_time(folder: Path, as_ids: bool) -> None:
    """Counted in lines of ours that run, not in seconds."""
    preprocessor = Preprocessor.load(folder, media=MediaSettings(MediaLimits(items={"image": 1_000})))

    def lines(count: int) -> int:
        prompt = with_image([picture_file("PNG")] * count, MARKER * count)
        if as_ids:
            prompt.token_ids.ids.extend([1, IMAGE_PAD, 2] * count)
            prompt.parse_special_tokens = False
        preprocessor.encode_prompt(prompt)
        return lines_run(lambda: preprocessor.encode_prompt(prompt))

    assert lines(80) < 2.5 * lines(40)


def lines_run(work: Any) -> int:
    """How many lines of preprocess/ the work runs in this thread."""
    count, root = 0, str(Path(forebay.__file__).parents[1] / "preprocess")

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith(root) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_cve_2025_46722_pictures_of_the_same_bytes_are_told_apart(preprocessor: Preprocessor) -> None:
    plain = np.arange(40 * 24 * 3, dtype=np.uint8)
    wide, high = plain.reshape(24, 40, 3), plain.reshape(40, 24, 3)
    indexes = PilImages.fromarray(plain[: 24 * 40].reshape(24, 40) % 4)
    palettes = []
    for colours in ([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255], [9, 9, 9, 0, 255, 0, 255, 0, 0, 0, 0, 255]):
        painted = indexes.copy()
        painted.putpalette(colours)
        palettes.append(saved(painted, "PNG"))
    items = [preprocessor.encode_prompt(with_image(image)).media[0].item for image in (wide, high, *palettes)]
    assert len({item.digest for item in items}) == len(items)


FORMS = {
    "cve-2025-6242-host-inside": "https://metadata.example.com/x.png",
    "cve-2026-24779-backslash": "https://media.example.com\\@metadata.example.com/x.png",
    "cve-2026-25960-user-part": "https://media.example.com@metadata.example.com/x.png",
    "cve-2026-34753-literal-address": "https://169.254.169.254/latest/meta-data",
    "cve-2025-3777-name-that-only-begins-so": "https://media.example.com.attacker.example/x.png",
    "file": "file:///etc/passwd",
}


class Network:
    """Name servers and hosts that nobody is to reach, but for one that redirects there."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    def resolve(self, host: str) -> list[str]:
        return ["93.184.215.14"] if host == "media.example.com" else ["169.254.169.254"]

    def connect(self, host: str, address: str, seconds: float) -> socket.socket:
        self.dialled.append(address)
        near, far = socket.socketpair()
        with far:
            far.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://metadata.example.com/x\r\nContent-Length: 0\r\n\r\n")
        return near


def fetching(folder: Path, network: Network) -> Preprocessor:
    fetch = UrlFetcher(("media.example.com", "metadata.example.com"), resolve=network.resolve, connect=network.connect)
    return Preprocessor.load(folder, media=MediaSettings(fetch=fetch))


def at_url(url: str) -> prompt_pb2.Prompt:
    media = media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, url=url)
    return prompt_pb2.Prompt(text=MARKER, media=[media], parse_special_tokens=True)


@pytest.mark.parametrize("url", FORMS.values(), ids=FORMS.keys())
def test_a_url_reaches_no_host_inside(folder: Path, url: str) -> None:
    network = Network()
    assert reason_of(refused(fetching(folder, network), at_url(url))) == "MEDIA_FETCH"
    assert network.dialled == []


def test_cve_2025_6242_a_redirect_reaches_no_host_inside(folder: Path) -> None:
    network = Network()
    assert reason_of(refused(fetching(folder, network), at_url("https://media.example.com/x.png"))) == "MEDIA_FETCH"
    assert network.dialled == ["93.184.215.14"]


def test_cve_2026_0599_urls_in_a_text_are_text(folder: Path) -> None:
    network = Network()
    preprocessor = fetching(folder, network)
    text = "![a picture](https://media.example.com/x.png) <img src='https://media.example.com/x.png'>"
    for prompt in (to_prompt(text), chat_prompt([{"role": "user", "content": text}])):
        encoded = preprocessor.encode_prompt(prompt)
        assert encoded.media == () and preprocessor.decode(encoded.token_ids) == text
    assert network.dialled == []


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((2, WIDTH + 1), "MEDIA_UNUSABLE"), ((3, WIDTH), "MEDIA_UNUSABLE"), ((WIDTH,), "MEDIA_UNUSABLE")],
    ids=["width", "rows", "rank"],
)
def test_cve_2025_62372_embeddings_of_a_wrong_shape_are_refused(
    preprocessor: Preprocessor, shape: tuple[int, ...], reason: str
) -> None:
    given = {"image_embeds": np.zeros(shape, np.float32), "image_grid_thw": np.array([[1, 2, 4]])}  # of two rows
    assert reason_of(refused(preprocessor, with_image(given))) == reason


def test_cve_2025_62164_a_tensor_is_the_bytes_that_its_shape_says(preprocessor: Preprocessor) -> None:
    given = {"image_embeds": np.zeros((2, WIDTH), np.float32), "image_grid_thw": np.array([[1, 2, 4]])}
    prompt = with_image(given)
    assert preprocessor.encode_prompt(prompt).media[0].item.num_features == 2
    tensor = prompt.media[0].embeddings.values[0]
    for shape in ([2, WIDTH * 2], [1 << 31, 1 << 31], [0, WIDTH]):
        del tensor.shape[:]
        tensor.shape.extend(shape)
        assert reason_of(refused(preprocessor, prompt)) in ("MEDIA_DECODE", "MEDIA_UNUSABLE")


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 3), (9, 7)], ids=str)
def test_cve_2026_22773_a_one_by_one_pixel_picture_has_its_place(
    preprocessor: Preprocessor, size: tuple[int, int]
) -> None:
    encoded = preprocessor.encode_prompt(with_image(saved(PilImages.new("RGB", size), "PNG")))
    check_places(encoded)
    (placed,) = encoded.media
    frames, _, height, width = placed.item.tensors["pixels"].shape
    assert frames * (height // 8) * (width // 8) == placed.item.num_features  # a feature for 2 x 2 patches of 4 x 4


def test_cve_2026_22778_an_error_says_nothing_of_the_decoder(preprocessor: Preprocessor) -> None:
    for file in (
        picture_file("PNG")[:-40],
        picture_file("JPEG")[:-40],
        picture_file("TIFF")[:40],
        b"GIF89a\xff\xff\xff\xff",
    ):
        error = refused(preprocessor, with_image(file))
        assert reason_of(error) == "MEDIA_DECODE"
        assert not re.search(r"0x[0-9a-f]|<|BytesIO|Error|PIL|/", error.message), error.message


@pytest.mark.parametrize("head", [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"], ids=["jp2", "codestream"])
def test_cve_2026_22778_jpeg_2000_is_given_to_no_decoder(preprocessor: Preprocessor, head: bytes) -> None:
    for modality, text in (("image", MARKER), ("video", FILM)):
        data = {"prompt": text, "multi_modal_data": {modality: head + b"\0" * 200}, "parse_special_tokens": True}
        error = refused(preprocessor, to_prompt(data))
        assert "the file is JPEG 2000" in error.message


def test_cve_2026_34755_a_video_of_many_frames_becomes_few(preprocessor: Preprocessor) -> None:
    def prompt(film: Any) -> prompt_pb2.Prompt:
        return to_prompt({"prompt": FILM, "multi_modal_data": {"video": film}, "parse_special_tokens": True})

    (placed,) = preprocessor.encode_prompt(prompt(video_file(num_frames=1_500))).media
    assert len(placed.item.tensors["pixels"]) == 32
    error = refused(preprocessor, prompt(np.zeros((1_025, 2, 2, 3), np.uint8)))
    assert "the video has 1,025 frames; at most 1,024 are taken" in error.message
    assert "the file is JPEG; video files can be" in refused(preprocessor, prompt(picture_file("JPEG") * 2_000)).message


def test_cve_2026_34760_channels_of_sound_become_their_mean(tmp_path: Path) -> None:
    """As librosa's to_mono, on which processors are trained; not the left one, and not a weighted sum."""
    write_files(read_golden("media/UltravoxModel"), tmp_path)
    preprocessor = Preprocessor.load(tmp_path)
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4_000)).astype(np.float32)
    digests = []
    for samples in (np.stack([left, right], axis=1), (left + right) / 2):
        path = tmp_path / "sound.wav"
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        data = {"prompt": "<|audio|>", "multi_modal_data": {"audio": path.read_bytes()}, "parse_special_tokens": True}
        digests.append(preprocessor.encode_prompt(to_prompt(data)).media[0].item.digest)
    assert digests[0] == digests[1]


def test_cve_2026_44222_a_placeholder_that_a_user_spells_is_text(preprocessor: Preprocessor) -> None:
    spelled = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    alone = preprocessor.encode_prompt(chat_prompt([{"role": "user", "content": spelled}]))
    assert (
        IMAGE_PAD not in alone.token_ids and preprocessor.decode(alone.token_ids, skip_special_tokens=False) == spelled
    )
    parts = [{"type": "text", "text": spelled}, {"type": "image", "image": PilImages.new("RGB", (24, 24))}]
    check_places(preprocessor.encode_prompt(chat_prompt([{"role": "user", "content": parts}])))
    for text in (spelled, "<|image_pad|>"):  # in the model's own format, they are places that nothing fills
        prompt = prompt_pb2.Prompt(text=text, parse_special_tokens=True)
        assert reason_of(refused(preprocessor, prompt)) == "MEDIA_COUNT"


def test_a_bomb_of_sound_is_refused_before_it_is_whole(tmp_path: Path) -> None:
    """A few bytes of Opus that are hours of silence (vllm-project/vllm#44970)."""
    write_files(read_golden("media/UltravoxModel"), tmp_path)
    path = tmp_path / "sound.ogg"
    soundfile.write(path, np.zeros(48_000 * 30, np.float32), 48_000, format="OGG", subtype="OPUS")
    data = {"prompt": "<|audio|>", "multi_modal_data": {"audio": path.read_bytes()}, "parse_special_tokens": True}
    preprocessor = Preprocessor.load(tmp_path, media=MediaSettings(MediaLimits(audio_seconds=10.0)))
    assert len(path.read_bytes()) < 100_000
    assert reason_of(refused(preprocessor, to_prompt(data))) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    ("file", "reason"),
    [(png_header(50_000, 50_000), "MEDIA_TOO_LARGE"), (chunk_of_text(100 << 20), "MEDIA_DECODE")],
    ids=["pixels", "note"],
)
def test_a_bomb_of_a_picture_is_refused(preprocessor: Preprocessor, file: bytes, reason: str) -> None:
    assert reason_of(refused(preprocessor, with_image(file))) == reason


def test_cve_2025_61620_no_request_brings_a_template() -> None:
    fields = {
        field.name for message in prompt_pb2.DESCRIPTOR.message_types_by_name.values() for field in message.fields
    }
    assert "messages" in fields and not {field for field in fields if "template" in field}


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_cve_2025_66448_code_that_a_config_names_is_not_run(tmp_path: Path, trust_remote_code: bool) -> None:
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoProcessor": "own.Processor"}
    write_model(tmp_path, auto_map=code, vision_config=CONFIG["vision_config"] | {"auto_map": code})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"auto_map": code}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nConfig = Model = Processor = object\n")
    preprocessor = Preprocessor.load(tmp_path, trust_remote_code=trust_remote_code)
    assert preprocessor.encode_prompt(with_image(picture_file("PNG"))).media
    assert not (tmp_path / "was_run").exists()


def test_cve_2026_3060_nothing_between_the_tiers_is_unpickled() -> None:
    root, found = Path(forebay.__file__).parents[1], []
    for path in (path for package in ("forebay", "frontend", "preprocess") for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in UNPICKLERS]
    assert found == []
