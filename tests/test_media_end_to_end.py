"""Prompts with pictures through both tiers as processes: the tokens of the reference, and nobody harmed by bad media."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")

from forebay import Client, SamplingParams  # noqa: E402
from forebay.errors import ForebayError, InvalidRequest  # noqa: E402
from forebay.v1.media_pb2 import MEDIA_KIND_IMAGE, Media  # noqa: E402
from forebay.v1.prompt_pb2 import Prompt  # noqa: E402
from tests.forebay.test_llm_media import check as check_tokens  # noqa: E402
from tests.forebay.test_llm_media import media_of, params_of  # noqa: E402
from tests.golden.materialize import materialize, read_golden  # noqa: E402
from tests.processes import serve  # noqa: E402

# One set of servers for all of these, where tests are spread over processes.
pytestmark = pytest.mark.xdist_group("media_end_to_end")

TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden("media/InternVLChatModel")


@pytest.fixture(scope="module")
def client(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = materialize(golden, tmp_path_factory.mktemp("internvl"))
    with serve("--log-level", "warning", model=folder) as (_, address, _), Client(address, timeout=TIMEOUT_S) as client:
        yield client


def check(case: dict[str, Any], output: Any) -> None:
    """As offline; the prompt's ids do not come back, but their number does."""
    assert output.num_prompt_tokens == len(case["input_ids"])
    check_tokens({key: value for key, value in case.items() if key != "input_ids"}, output)


def prompt_of(case: dict[str, Any], *, as_files: bool = False) -> dict[str, Any]:
    return {
        "prompt": case["prompt"],
        "parse_special_tokens": True,
        "multi_modal_data": media_of(case, as_files=as_files),
    }


@pytest.mark.parametrize("as_files", [False, True], ids=["decoded", "files"])
def test_answers_are_those_of_the_reference(client: Client, golden: dict[str, Any], as_files: bool) -> None:
    for case in golden["cases"]:
        check(case, client.generate(prompt_of(case, as_files=as_files), params_of(case)))


def test_many_at_once_with_the_same_pictures(client: Client, golden: dict[str, Any]) -> None:
    cases = golden["cases"] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outputs = pool.map(lambda case: client.generate(prompt_of(case), params_of(case)), cases)
        for case, output in zip(cases, outputs, strict=True):
            check(case, output)


def test_bad_media_ends_its_own_request_alone(client: Client, golden: dict[str, Any]) -> None:
    case = golden["cases"][0]
    good = prompt_of(case, as_files=True)
    data = good["multi_modal_data"]["image"][0]
    bad = [data[: len(data) // 2], b"no picture", b""]

    def ask(prompt: dict[str, Any]) -> Any:
        try:
            return client.generate(prompt, params_of(case))
        except ForebayError as error:
            return error

    prompts = [good | {"multi_modal_data": {"image": [one]}} for one in bad for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [good, *prompts, good]))
    check(case, answers[0])
    check(case, answers[-1])
    for error in answers[1:-1]:
        assert isinstance(error, InvalidRequest)
        assert error.reason_name == "MEDIA_DECODE"
        assert "media[0]" in str(error.fields)


def test_media_that_fits_no_place_is_refused(client: Client, golden: dict[str, Any]) -> None:
    case = golden["cases"][0]
    prompt = prompt_of(case)
    for changed in (prompt | {"prompt": "no place"}, prompt | {"multi_modal_data": {}}):
        with pytest.raises(InvalidRequest) as caught:
            client.generate(changed, SamplingParams(max_tokens=1))
        assert caught.value.reason_name == "MEDIA_COUNT"


def test_a_digest_stands_for_media_that_was_given_before(client: Client, golden: dict[str, Any]) -> None:
    case = golden["cases"][0]
    data = media_of(case, as_files=True)["image"][0]
    check(case, client.generate(prompt_of(case, as_files=True), params_of(case)))
    prompt = Prompt(text=case["prompt"], parse_special_tokens=True)
    prompt.media.append(Media(kind=MEDIA_KIND_IMAGE, digest=hashlib.sha256(data).digest()))
    check(case, client.generate(prompt, params_of(case)))
    prompt.media[0].digest = bytes(32)
    with pytest.raises(ForebayError) as caught:
        client.generate(prompt, params_of(case))
    assert caught.value.reason_name == "MEDIA_FETCH"
