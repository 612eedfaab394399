"""The tier of its own: the same answers as without it, from services that differ, and with the tower in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

torch = pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")

from forebay import Client, SamplingParams  # noqa: E402
from forebay.errors import ForebayError, InvalidRequest  # noqa: E402
from forebay.preprocess.v1 import preprocess_pb2 as api  # noqa: E402
from forebay.preprocess.v1 import preprocess_pb2_grpc  # noqa: E402
from forebay.v1.prompt_pb2 import Prompt  # noqa: E402
from tests.forebay.test_llm_media import params_of  # noqa: E402
from tests.golden.materialize import materialize, read_golden  # noqa: E402
from tests.processes import WAIT_S, Server, free_port, running, serve, wait_until_serving  # noqa: E402
from tests.test_media_end_to_end import check, prompt_of  # noqa: E402

# One set of servers for all of these, where tests are spread over processes.
pytestmark = pytest.mark.xdist_group("media_end_to_end")

PREPROCESS = "forebay.preprocess.v1.PreprocessService"
TIMEOUT_S = 240.0


class Tier:
    """A model folder with two preprocess services in front of one executor, and a frontend that has no decoders to need."""

    def __init__(self, folder: Path, services: list[Server], addresses: list[str], client: Client) -> None:
        self.folder, self.services, self.addresses, self.client = folder, services, addresses, client


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden("media/InternVLChatModel")


@pytest.fixture(
    scope="module", params=[(), ("--encode-media", "--dtype", "float32", "--num-threads", "1")], ids=["pixels", "rows"]
)
def tier(
    request: pytest.FixtureRequest, golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tier]:
    folder = materialize(golden, tmp_path_factory.mktemp("internvl"))
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    commands = [("preprocess", str(folder), "--listen", address, *request.param) for address in addresses]
    with running(*commands[0]) as first, running(*commands[1]) as second:
        for address, server in zip(addresses, (first, second), strict=True):
            wait_until_serving(address, PREPROCESS, server)
        flags = ("--preprocessors", ",".join(addresses), "--log-level", "warning")
        with serve(*flags, model=folder) as (_, address, _), Client(address, timeout=TIMEOUT_S) as client:
            yield Tier(folder, [first, second], addresses, client)


def test_answers_are_those_of_the_reference(tier: Tier, golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        check(case, tier.client.generate(prompt_of(case, as_files=True), params_of(case)))


def test_what_a_service_refuses_the_client_hears(tier: Tier, golden: dict[str, Any]) -> None:
    prompt = prompt_of(golden["cases"][0]) | {"multi_modal_data": {"image": [b"no picture"]}}
    with pytest.raises(InvalidRequest) as caught:
        tier.client.generate(prompt, SamplingParams(max_tokens=1))
    assert caught.value.reason_name == "MEDIA_DECODE"
    assert "media[0]" in str(caught.value.fields)


def test_what_travels_is_described(tier: Tier, golden: dict[str, Any], request: pytest.FixtureRequest) -> None:
    from forebay.client_requests import to_prompt

    with grpc.insecure_channel(tier.addresses[0]) as channel:
        stub = preprocess_pb2_grpc.PreprocessServiceStub(channel)
        encodes = stub.Describe(api.DescribeRequest(), timeout=WAIT_S).encodes_media
        prompt = to_prompt(prompt_of(golden["cases"][0]))
        responses = list(stub.Encode(api.EncodeRequest(prompt=prompt), timeout=WAIT_S))
        names = [tensor.name for item in responses[0].prompt.media for tensor in item.tensors]
        assert names == (["embeddings"] if encodes else ["normalization", "pixels"])
        assert list(responses[0].prompt.token_ids) == golden["cases"][0]["input_ids"]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Encode(api.EncodeRequest(prompt=Prompt(text="")), timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_service_that_is_gone_is_passed_over(tier: Tier, golden: dict[str, Any]) -> None:
    """The last of these: it takes the services away, one by one."""
    case = golden["cases"][0]
    tier.services[0].close()
    for _ in range(3):
        check(case, tier.client.generate(prompt_of(case), params_of(case)))
    tier.services[1].close()
    with pytest.raises(ForebayError) as caught:
        tier.client.generate(prompt_of(case), params_of(case))
    assert caught.value.code == "UNAVAILABLE"
    text = golden["cases"][-2] if not golden["cases"][-2].get("images") else None
    if text is not None:
        check(text, tier.client.generate(prompt_of(text), params_of(text)))


def test_it_drains_and_says_so(golden: dict[str, Any], tmp_path: Path) -> None:
    folder = materialize(golden, tmp_path)
    address = f"127.0.0.1:{free_port()}"
    with running("preprocess", str(folder), "--listen", address) as server:
        wait_until_serving(address, PREPROCESS, server)
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == 1
        server.process.terminate()
        assert server.wait() == 0
