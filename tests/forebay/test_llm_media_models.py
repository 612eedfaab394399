"""What the offline interface makes of each kind of media is what processor and engine make of it, model by model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: offline inference needs forebay[executor]")

from forebay import LLM, SamplingParams  # noqa: E402
from preprocess.media.decoded import Audio, Image, Video  # noqa: E402
from preprocess.processors.registry import load_processor  # noqa: E402
from preprocess.tokenizer_files import load_tokenizer  # noqa: E402
from tests.gpu_executor.models.checkpoints import tiny_checkpoint  # noqa: E402
from tests.gpu_executor.models.media_cases import blip2, chameleon, fuyu, idefics3, mllama, qwen2_audio  # noqa: E402
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint, picture  # noqa: E402
from tests.gpu_executor.models.media_engine import engine_of, generate  # noqa: E402
from tests.gpu_executor.models.test_qwen2_vl import CASE as QWEN2_VL  # noqa: E402
from tests.preprocess.processors.byte_tokenizer import plain_prompt, write_tokenizer  # noqa: E402
from tests.preprocess.processors.test_mel import tone  # noqa: E402
from tests.preprocess.processors.test_qwen2_vl import CONTROLS, SMALL, film  # noqa: E402

CLIP, PICTURE, FILM = tone(9000), picture(30, 40), film(5, 24, 40)
MARKERS: dict[str, tuple[MediaCheckpoint, str]] = {
    "idefics3": (idefics3.IDEFICS3, "<image>x"),
    "aria": (idefics3.ARIA, "<|img|>x"),
    "blip2": (blip2.BLIP2, "x"),
    "fuyu": (fuyu.FUYU, "x"),
    "chameleon": (chameleon.CHAMELEON, "<image>x"),
    "mllama": (mllama.MLLAMA, "a<|image|>x"),
}


def check(folder: Path, prompt: str, given: dict[str, Any], media: list[Any]) -> None:
    """The offline interface with `given`, against our own processor and engine with `media`."""
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "num_threads": 1, "disable_tqdm": True}
    with LLM(str(folder), **settings) as llm:
        (output,) = llm.generate({"prompt": prompt, "multi_modal_data": given}, params)
    tokenizer = load_tokenizer(folder)
    processor = load_processor(folder, tokenizer)
    items = [processor.prepare(one, len(media)) for one in media]
    encoded = processor.expand_text(plain_prompt(tokenizer, prompt), items)
    assert output.prompt_token_ids == encoded.token_ids
    (wanted,) = generate(engine_of(folder), [encoded], 6)
    assert output.outputs[0].token_ids == wanted.token_ids


@pytest.mark.parametrize("name", MARKERS)
def test_pictures(name: str, tmp_path: Path) -> None:
    checkpoint, prompt = MARKERS[name]
    checkpoint.write(tmp_path)
    check(tmp_path, prompt, {"image": PICTURE}, [Image(PICTURE)])


def test_clips(tmp_path: Path) -> None:
    qwen2_audio.QWEN2_AUDIO.write(tmp_path)
    given = {"audio": [(CLIP, 16000), CLIP]}
    check(tmp_path, "<|AUDIO|>a<|AUDIO|>b", given, [Audio(CLIP, 16000)] * 2)


def test_pictures_and_videos(tmp_path: Path) -> None:
    tiny_checkpoint(QWEN2_VL, tmp_path)
    write_tokenizer(tmp_path, *CONTROLS)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SMALL))
    given = {"image": PICTURE, "video": [FILM.frames, np.array(FILM.frames[:2])]}
    media = [Image(PICTURE), FILM, Video(FILM.frames[:2], 2.0)]
    check(tmp_path, "<|video_pad|>a<|image_pad|>b<|video_pad|>", given, media)
