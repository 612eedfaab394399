"""`make demo-image`: the embedded model looks at pictures that it never saw, as transformers does, and the script shows it."""

from __future__ import annotations

import importlib
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the demo's executor needs forebay[executor]")

from PIL import Image  # noqa: E402

from forebay import LLM, SamplingParams  # noqa: E402
from tests.processes import ROOT  # noqa: E402

# With the other demo's servers and the training here in one process, where tests are spread over several.
pytestmark = pytest.mark.xdist_group("demo")

DEMO = ROOT / "demo"
MODEL = DEMO / "image_model"
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a module of demo/ by its name."""
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(MODEL), dtype="float32", kv_cache_memory_bytes=32 << 20, num_threads=1, disable_tqdm=True) as llm:
        yield llm


def messages(question: str, **picture: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **picture}, {"type": "text", "text": question}]}]


def answers(llm: LLM, asked: list[tuple[Any, str]]) -> list[str]:
    """What the model says of scenes, each with its question."""
    chats = [messages(question, image=scene.draw(200)) for scene, question in asked]
    return [output.outputs[0].text for output in llm.chat(chats, GREEDY)]


def test_nine_in_ten_unseen_pictures_are_described_exactly(demo: Any, llm: LLM) -> None:
    pictures, chats = demo("pictures"), demo("picture_chats")
    scenes = list(islice(pictures.unseen_scenes("a test"), 40))
    found = answers(llm, [(scene, chats.DESCRIBE[index % 4]) for index, scene in enumerate(scenes)])
    right = [answer == chats.describe(scene) for answer, scene in zip(found, scenes)]
    assert len({chats.describe(scene) for scene in scenes}) > 30  # nothing that is said by heart would do
    assert sum(right) >= 36, [(chats.describe(s), a) for s, a, ok in zip(scenes, found, right) if not ok]


def test_two_things_that_training_never_showed_together_are_told(demo: Any, llm: LLM) -> None:
    pictures = demo("pictures")
    assert not any(scene.is_held_out for scene in islice(pictures.training_scenes(0), 5000))
    scenes = list(islice(pictures.unseen_scenes("a test", *pictures.NEVER_TOGETHER), 20))
    assert all(scene.is_held_out for scene in scenes)
    found = answers(llm, [(scene, "What is in the picture?") for scene in scenes])
    assert found.count("a red circle and a blue square") >= 18, found


def test_questions_of_every_kind_are_answered(demo: Any, llm: LLM) -> None:
    rng = random.Random("a test")
    scenes = islice(demo("pictures").unseen_scenes("questions"), 60)
    exam = [(scene, demo("picture_chats").conversation(scene, rng, 1)[0]) for scene in scenes]
    found = answers(llm, [(scene, turn.question) for scene, turn in exam])
    wrong = [(turn, answer) for (_, turn), answer in zip(exam, found) if turn.answer != answer]
    assert len(wrong) <= 12, wrong


def test_tokens_are_those_of_transformers(demo: Any, llm: LLM) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL)
    reference = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    question = "Describe the picture."
    for scene in islice(demo("pictures").unseen_scenes("the reference"), 3):
        picture = scene.draw(150)
        text = processor.apply_chat_template(messages(question), add_generation_prompt=True)
        inputs = processor(images=picture, text=text, return_tensors="pt")
        num_prompt_tokens = inputs.input_ids.shape[1]
        expected = reference.generate(**inputs, do_sample=False, max_new_tokens=40)[0]
        (output,) = llm.chat(messages(question, image=picture), GREEDY)
        assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == expected.tolist()
        assert len(output.prompt_token_ids) == num_prompt_tokens


def test_pictures_are_a_function_of_the_seed(demo: Any) -> None:
    pictures = demo("pictures")
    for scenes in (pictures.training_scenes, pictures.crowded_scenes, pictures.unseen_scenes):
        once, again, others = (list(islice(scenes(seed), 5)) for seed in (1, 1, 2))
        assert once == again and not set(once) & set(others)
        assert [scene.draw(64).tobytes() for scene in once] == [scene.draw(64).tobytes() for scene in again]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([("black", "circle")], "a black circle"),
        ([("orange", "star"), ("red", "star")], "an orange star and a red star"),
        (
            [("white", "square"), ("orange", "circle"), ("green", "triangle")],
            "a white square, an orange circle and a green triangle",
        ),
    ],
)
def test_shapes_are_told_from_left_to_right(demo: Any, names: list[tuple[str, str]], text: str) -> None:
    scene = next(demo("pictures").unseen_scenes(0, *names))
    assert [shape.x for shape in scene.shapes] == sorted(shape.x for shape in scene.shapes)
    assert demo("picture_chats").describe(scene) == text


def test_the_training_script_makes_this_checkpoint(tmp_path: Path) -> None:
    """Its files but for the weights, which so few steps do not make good."""
    command = [sys.executable, str(DEMO / "train_image_model.py"), "--out", str(tmp_path), "--threads", "1"]
    few = ["--tower-steps", "2", "--steps", "2", "--exam-pictures", "1"]
    result = subprocess.run([*command, *few], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    made, kept = ({path.name for path in folder.iterdir()} for folder in (tmp_path, MODEL))
    assert made == kept
    for name in sorted(kept - {"model.safetensors", "README.md"}):
        assert (tmp_path / name).read_bytes() == (MODEL / name).read_bytes(), name
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 4 << 20


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO / "run_image.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )


def test_the_demo_tells_what_is_in_its_picture_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = _run(folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and "\033" not in result.stdout
    assert "What is in the picture?\n  a red circle and a blue square\n" in result.stdout
    assert "How many shapes are there?\n  two\n" in result.stdout
    counts = re.findall(r"([\d,]+) bytes to the frontend, ([\d,]+) from there to the executor", result.stdout)
    first, second = ([int(count.replace(",", "")) for count in pair] for pair in counts)
    pixels = 3 * 64 * 64
    assert first[1] > pixels and max(second) < 1000  # the picture goes once
    listing = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    for address in re.findall(r"--listen (\S+)|--port (\d+)", result.stdout):
        assert not [line for line in listing.splitlines() if "forebay" in line and max(address) in line]
    assert list(tmp_path.iterdir()) == []


def test_the_demo_takes_a_picture_and_questions_of_ones_own(demo: Any, tmp_path: Path) -> None:
    pictures = demo("pictures")
    scene = next(pictures.unseen_scenes(1, ("green", "triangle")))
    scene.draw(320).save(tmp_path / "mine.jpg", quality=95)
    result = _run("--image", "mine.jpg", "--question", "What do you see?", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "a picture of 320 x 320 pixels\n" in result.stdout
    assert "What do you see?\n  a green triangle\n" in result.stdout


@pytest.mark.parametrize("content", [None, b"no picture"], ids=["no file", "no picture"])
def test_what_is_no_picture_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    result = _run("--image", "x.png", folder=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("make demo-image: ") and result.stderr.count("\n") == 1


def test_a_terminal_gets_two_pixels_in_each_character(demo: Any) -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    picture.putpixel((1, 1), (0, 0, 255))
    left, right = "\033[38;2;255;0;0;48;2;255;0;0m▀", "\033[38;2;255;0;0;48;2;0;0;255m▀"
    assert demo("run_image").blocks(picture, 2) == f"{left}{right}\033[0m"


def test_the_meter_counts_what_it_passes_on_both_ways(demo: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(5, socket.MSG_WAITALL).upper() * 1000)

    server = threading.Thread(target=answer)
    server.start()
    meter = demo("byte_meter").ByteMeter(f"127.0.0.1:{listener.getsockname()[1]}")
    host, port = meter.address.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"hello")
        assert client.makefile("rb").read() == b"HELLO" * 1000
    server.join()
    listener.close()
    assert (meter.there, meter.back) == (5, 5000)
