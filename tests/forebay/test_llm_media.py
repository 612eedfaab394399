"""Offline inference with media: every multimodal golden through LLM, in each form in which people have media."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: offline inference needs forebay[executor]")

from PIL import Image as PilImages  # noqa: E402

from forebay import LLM, SamplingParams  # noqa: E402
from forebay.errors import InvalidRequest  # noqa: E402
from forebay.v1.errors_pb2 import ErrorReason  # noqa: E402
from tests.golden.materialize import FOLDER, materialize, read_golden  # noqa: E402

GOLDENS = sorted(path.stem for path in (FOLDER / "media").glob("*.json"))


def load(golden: dict[str, Any], folder: Path) -> LLM:
    task = golden.get("task", "generate")
    materialize(golden, folder)
    return LLM(
        str(folder),
        task=task,
        dtype="float32",
        kv_cache_memory_bytes=160 << 20,
        num_threads=1,
        disable_tqdm=True,
    )


@pytest.fixture(scope="module", params=GOLDENS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict, LLM]]:
    """A golden and its model."""
    golden = read_golden(f"media/{request.param}")
    with load(golden, tmp_path_factory.mktemp("media")) as llm:
        yield golden, llm


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """One model that takes pictures, whose placeholder is <image> in plain text."""
    with load(read_golden("media/InternVLChatModel"), tmp_path_factory.mktemp("internvl")) as llm:
        yield llm


def picture(data: str) -> PilImages.Image:
    image = PilImages.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def sound(data: str) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return samples, file.getframerate()


def array(tensor: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(tensor["base64"]), tensor["dtype"]).reshape(tensor["shape"])


def media_of(case: dict[str, Any], *, as_files: bool = False) -> dict[str, Any]:
    """A case's media as `multi_modal_data`: decoded, or as files."""
    data: dict[str, Any] = {}
    if images := case.get("images"):
        data["image"] = [base64.b64decode(one) if as_files else picture(one) for one in images]
    if audios := case.get("audios"):
        data["audio"] = [base64.b64decode(one) if as_files else sound(one) for one in audios]
    for video in case.get("videos") or []:
        data.setdefault("video", []).append(([picture(frame) for frame in video["frames"]], video["fps"]))
    for modality in ("image", "audio"):
        given = case.get(f"{modality}_embeds")
        if given is not None:
            values = [torch.from_numpy(array(one).copy()) for one in (given if isinstance(given, list) else [given])]
            extras = {name: case[name] for name in ("image_grid_thw", "image_sizes") if name in case}
            data[modality] = {f"{modality}_embeds": values if isinstance(given, list) else values[0], **extras}
    return data


def with_pictures(messages: list[dict[str, Any]], images: list[Any]) -> list[dict[str, Any]]:
    """A golden's messages, with pictures where it has their numbers."""

    def part(one: Any) -> Any:
        return one | {"image": images[one["image"]]} if isinstance(one, dict) and one["type"] == "image" else one

    def content(given: Any) -> Any:
        return given if isinstance(given, str) else [part(one) for one in given]

    return [message | {"content": content(message["content"])} for message in messages]


def params_of(case: dict[str, Any]) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=case["max_tokens"], ignore_eos=True, logprobs=5)


def check(case: dict[str, Any], output: Any) -> None:
    """An output is that of the reference."""
    if "input_ids" in case:
        assert output.prompt_token_ids == case["input_ids"], case["name"]
    if "embedding" in case:
        assert np.abs(np.array(output.outputs.embedding) - np.array(case["embedding"])).max() < 1e-3
        return
    completion = output.outputs[0]
    assert completion.token_ids == case["token_ids"], case["name"]
    for found, wanted in zip(completion.logprobs, case["top_logprobs"], strict=True):
        for token_id, logprob in wanted:
            if token_id in found:
                assert found[token_id].logprob == pytest.approx(logprob, abs=1e-3)
        assert len(found.keys() & {token_id for token_id, _ in wanted}) >= len(wanted) - 1


def run(llm: LLM, golden: dict[str, Any], prompts: list[dict[str, Any]]) -> list[Any]:
    if golden.get("task") == "embed":
        return llm.embed(prompts)
    return llm.generate(prompts, [params_of(case) for case in golden["cases"]])


@pytest.mark.parametrize("as_files", [False, True], ids=["decoded", "files"])
def test_goldens_through_the_offline_interface(served: tuple[dict, LLM], as_files: bool) -> None:
    golden, llm = served
    if any("messages" in case for case in golden["cases"]):
        outputs = []
        for case in golden["cases"]:
            images = media_of(case, as_files=as_files).get("image", [])
            outputs += llm.chat(with_pictures(case["messages"], images), params_of(case))
    else:
        prompts = [
            {"prompt": case["prompt"], "multi_modal_data": media_of(case, as_files=as_files)}
            for case in golden["cases"]
        ]
        outputs = run(llm, golden, prompts)
    for case, output in zip(golden["cases"], outputs, strict=True):
        check(case, output)


def test_ids_that_are_expanded_already_keep_their_places(served: tuple[dict, LLM]) -> None:
    golden, llm = served
    if not all("input_ids" in case for case in golden["cases"]):
        pytest.skip("the golden has no expanded ids")
    prompts = [{"prompt_token_ids": case["input_ids"], "multi_modal_data": media_of(case)} for case in golden["cases"]]
    for case, output in zip(golden["cases"], run(llm, golden, prompts), strict=True):
        check(case, output)


def test_media_that_a_model_does_not_take_is_refused_with_its_place(llm: LLM) -> None:
    prompt = {"prompt": "<image>", "multi_modal_data": {"audio": np.zeros(1600, np.float32)}}
    with pytest.raises(InvalidRequest, match="takes no audio items; it takes image items") as raised:
        llm.generate(prompt)
    assert raised.value.reason == ErrorReason.ERROR_REASON_MEDIA_UNUSABLE
    assert raised.value.fields[0][0] == "prompt.media[0]"


def test_placeholders_and_pictures_of_different_number_are_refused(llm: LLM) -> None:
    image = PilImages.new("RGB", (20, 20))
    for text, images in (("<image>", []), ("Hello", [image]), ("<image><image>", [image])):
        with pytest.raises(InvalidRequest) as raised:
            llm.generate({"prompt": text, "multi_modal_data": {"image": images}})
        assert raised.value.reason == ErrorReason.ERROR_REASON_MEDIA_COUNT


def test_cve_2026_22773_a_one_by_one_pixel_picture_ends_no_engine(llm: LLM) -> None:
    prompts = [
        {"prompt": "<image>", "multi_modal_data": {"image": PilImages.new("RGB", size)}}
        for size in ((1, 1), (1, 3), (20, 20))
    ]
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    assert [len(output.outputs[0].token_ids) for output in llm.generate(prompts, params)] == [2, 2, 2]


def test_what_is_changed_in_the_config_changes_what_media_becomes(tmp_path: Path) -> None:
    golden = read_golden("media/InternVLChatModel")
    materialize(golden, tmp_path)
    case = next(case for case in golden["cases"] if len(case.get("images") or []) == 1)
    prompt = {"prompt": "<image>", "multi_modal_data": media_of(case)}
    options = {"dtype": "float32", "kv_cache_memory_bytes": 32 << 20, "num_threads": 1, "disable_tqdm": True}
    lengths = []
    for overrides in (None, {"max_dynamic_patch": 1}):
        with LLM(str(tmp_path), hf_overrides=overrides, **options) as llm:
            (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
        lengths.append(len(output.prompt_token_ids))
    assert lengths[0] > lengths[1]


def test_a_prompt_has_no_more_items_than_are_allowed(tmp_path: Path) -> None:
    materialize(read_golden("media/InternVLChatModel"), tmp_path)
    image = PilImages.new("RGB", (20, 20))
    options = {"dtype": "float32", "kv_cache_memory_bytes": 32 << 20, "num_threads": 1, "disable_tqdm": True}
    with LLM(str(tmp_path), limit_mm_per_prompt={"image": 1}, **options) as llm:
        prompt = {"prompt": "<image><image>", "multi_modal_data": {"image": [image, image]}}
        with pytest.raises(InvalidRequest, match="2 image items; at most 1 are taken") as raised:
            llm.generate(prompt)
    assert raised.value.reason == ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE
    with pytest.raises(InvalidRequest, match="limit_mm_per_prompt names 'picture'"):
        LLM(str(tmp_path), limit_mm_per_prompt={"picture": 1}, **options)
    with pytest.raises(InvalidRequest, match="media_io_kwargs: video has no 'fps'"):
        LLM(str(tmp_path), media_io_kwargs={"video": {"fps": 2}}, **options)


def test_embeddings_stand_beside_pictures_of_the_same_prompt(llm: LLM) -> None:
    cases = read_golden("media/InternVLChatModel")["cases"]
    two = next(case for case in cases if len(case.get("images") or []) == 2)
    (pixels,) = media_of(cases[0])["image"]
    rows = media_of(next(case for case in cases if "image_embeds" in case))["image"]["image_embeds"]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    outputs = llm.generate(
        [
            {"prompt": two["prompt"], "multi_modal_data": {"image": images}}
            for images in ([pixels] * 2, [pixels, rows[0]])
        ],
        params,
    )
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
