"""--image, --video and --audio of the verbs: what of them reaches the server, and errors of one line."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from forebay.cli import main
from forebay.errors import EXIT_BAD_CONFIG
from forebay.v1.media_pb2 import MEDIA_KIND_AUDIO, MEDIA_KIND_IMAGE, MEDIA_KIND_VIDEO, Media
from forebay.v1.prompt_pb2 import Prompt
from preprocess.media_item import EncodedPrompt
from preprocess.pooling_encoder import PoolingInput
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import expected_tokens
from tests.frontend.harness import Tier, tier
from tests.frontend.pooling_tier import embedder, preprocessor_of, vector_of

URL = "https://example.com/a.png"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb against a tier beside its event loop; gives its exit status, what it printed, and the prompts it sent."""

    async def run(up: Tier, *arguments: str) -> tuple[int, str, str, list[Prompt]]:
        prompts: list[Prompt] = []

        def encode(prompt: Prompt, **_: Any) -> EncodedPrompt:
            prompts.append(prompt)
            return EncodedPrompt([1])

        up.preprocessor.encode_prompt = encode  # with media
        up.preprocessor.encode = lambda prompt, **_: encode(prompt).token_ids
        command = [*arguments, "--server", f"127.0.0.1:{up.port}", "--max-tokens", "3", "--seed", "1"]
        status = await asyncio.wait_for(asyncio.to_thread(main, command), 20)
        printed = capsys.readouterr()
        return status, printed.out, printed.err, prompts

    return run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of files, by the text that is in them."""
    paths = {text: tmp_path / text for text in ("one", "two", "clip", "sound")}
    for text, path in paths.items():
        path.write_text(text)
    return {text: str(path) for text, path in paths.items()}


async def test_generate_sends_files_and_urls_beside_the_prompt(run: Any, files: dict[str, str]) -> None:
    flags = ["--image", files["one"], "--audio", files["sound"], "--image", URL, "--video", files["clip"]]
    async with tier() as up:
        status, out, err, (prompt,) = await run(up, "generate", "<image> and <image>", *flags)
    assert (status, out, err) == (0, text_of(expected_tokens(1, 0, 3)) + "\n", "")
    assert prompt.text == "<image> and <image>"
    assert prompt.parse_special_tokens  # who writes placeholders means tokens
    assert list(prompt.media) == [
        Media(kind=MEDIA_KIND_IMAGE, data=b"one"),
        Media(kind=MEDIA_KIND_IMAGE, url=URL),
        Media(kind=MEDIA_KIND_AUDIO, data=b"sound"),
        Media(kind=MEDIA_KIND_VIDEO, data=b"clip"),
    ]


async def test_generate_sends_them_beside_token_ids_too(run: Any, files: dict[str, str]) -> None:
    async with tier() as up:
        status, _, err, (prompt,) = await run(up, "generate", "--token-ids", "5,6", "--image", files["one"])
    assert status == 0, err
    assert list(prompt.token_ids.ids) == [5, 6] and [media.data for media in prompt.media] == [b"one"]


async def test_a_prompt_without_media_stays_plain_text(run: Any) -> None:
    async with tier() as up:
        _, _, _, (prompt,) = await run(up, "generate", "<image>")
    assert prompt == Prompt(text="<image>")


async def test_each_conversation_begins_with_the_media(
    run: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\nsecond\n/new\nthird\n"))
    flags = ["--image", files["one"], "--video", files["clip"], "--image", files["two"], "--system", "Be brief."]
    async with tier() as up:
        status, _, err, prompts = await run(up, "chat", *flags)
    assert status == 0, err
    said = [[[part.text or part.media.data for part in m.content] for m in prompt.chat.messages] for prompt in prompts]
    media, answer = [b"one", b"clip", b"two"], text_of(expected_tokens(1, 0, 3))
    assert said == [
        [["Be brief."], [*media, "first"]],
        [["Be brief."], [*media, "first"], [answer], ["second"]],
        [["Be brief."], [*media, "third"]],
    ]


@pytest.mark.parametrize("verb", ["generate", "chat", "embed"])
def test_a_file_that_is_not_there_is_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [verb, *(["x"] if verb != "chat" else []), "--image", "no/such.png"]
    assert main(arguments) == EXIT_BAD_CONFIG
    assert capsys.readouterr().err == f"forebay {verb}: --image no/such.png: No such file or directory\n"


@pytest.mark.parametrize("texts", [[], ["a", "b"], ["a", "--input", "texts.txt"]], ids=["none", "two", "with a file"])
def test_media_to_embed_goes_with_one_text(
    texts: list[str], files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", *texts, "--video", files["clip"]]) == EXIT_BAD_CONFIG
    assert "give one text with --video" in capsys.readouterr().err


async def test_embed_sends_media_beside_its_text(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[Prompt] = []
    preprocessor = preprocessor_of()

    def encode(prompt: Prompt, **_: Any) -> PoolingInput:
        prompts.append(prompt)
        return PoolingInput([5, 6], [])

    preprocessor.pooling.encode = encode
    async with tier(embedder(), preprocessor=preprocessor) as up:
        command = ["embed", "<image><image>", "--image", files["one"], "--image", files["two"]]
        server = ["--server", f"127.0.0.1:{up.port}"]
        assert await asyncio.wait_for(asyncio.to_thread(main, [*command, *server]), 20) == 0
    assert json.loads(capsys.readouterr().out)["embedding"] == vector_of([5, 6]).tolist()
    (prompt,) = prompts
    assert prompt.text == "<image><image>" and prompt.parse_special_tokens
    assert [media.data for media in prompt.media] == [b"one", b"two"]
