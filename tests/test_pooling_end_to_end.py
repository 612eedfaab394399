"""Models that pool, both tiers as processes: the same numbers as in one process, over the wire and from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")

from forebay import LLM, Client
from forebay.errors import NotOffered
from forebay.v1.model_pb2 import ModelTask
from tests.forebay.pooling_checkpoints import LABELS, write_checkpoint
from tests.processes import ROOT, Server, serve

# One set of servers for all of these, where tests are spread over processes.
pytestmark = pytest.mark.xdist_group("pooling_end_to_end")

TEXTS = [
    " ".join(["the quick brown fox", "hello my name"][number % 2 :][: 1 + number % 3]) + " a" for number in range(40)
]
TIMEOUT_S = 240.0


class Served:
    """A checkpoint behind both tiers, and in this process."""

    def __init__(self, server: Server, client: Client, llm: LLM, address: str) -> None:
        self.server, self.client, self.llm, self.address = server, client, llm, address


@pytest.fixture(scope="module", params=["sentence", "classify", "score"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_checkpoint(tmp_path_factory.mktemp("pooling"), request.param)
    with (
        serve("--log-level", "warning", model=folder) as (server, address, _),
        Client(address, timeout=TIMEOUT_S) as client,
        LLM(str(folder), dtype="float32", num_threads=1, kv_cache_memory_bytes=8 << 20, disable_tqdm=True) as llm,
    ):
        yield Served(server, client, llm, address)


def tasks_of(served: Served) -> list[str]:
    tasks = served.client.get_model().tasks
    return [ModelTask.Name(task).removeprefix("MODEL_TASK_").lower() for task in tasks]


def test_numbers_are_those_of_one_process(served: Served) -> None:
    client, llm = served.client, served.llm
    if "embed" in tasks_of(served):
        response = client.embed(TEXTS, prompt_name="query")
        expected = llm.embed(TEXTS, prompt_name="query")
        for output, wanted in zip(response.outputs, expected, strict=True):
            assert output.embedding == pytest.approx(wanted.outputs.embedding, abs=1e-5)
        assert response.num_prompt_tokens == sum(len(wanted.prompt_token_ids) for wanted in expected)
    else:
        response, expected = client.classify(TEXTS), llm.classify(TEXTS)
        for output, wanted in zip(response.outputs, expected, strict=True):
            assert output.probs == pytest.approx(wanted.outputs.probs, abs=1e-5)
            assert output.labels == wanted.outputs.labels


def test_pairs_are_scored_as_in_one_process_where_the_model_scores(served: Served) -> None:
    documents = [text for text in TEXTS if len(text) < 30]
    if tasks_of(served) == ["classify"]:
        with pytest.raises(NotOffered, match="serves classify, not score"):
            served.client.score("a fox", documents)
        return
    found = [output.score for output in served.client.score("a fox", documents).outputs]
    assert len(set(found)) > 1
    assert found == pytest.approx([o.outputs.score for o in served.llm.score("a fox", documents)], abs=1e-5)


def test_the_model_says_what_it_does(served: Served) -> None:
    model, tasks = served.client.get_model(), tasks_of(served)
    assert tasks == list(served.llm._info.tasks)
    assert model.embedding_size == (32 if tasks == ["embed"] else 0)
    assert list(model.labels) == (list(LABELS.values()) if tasks == ["classify"] else list(model.labels))
    with pytest.raises(NotOffered, match="not generate"):
        served.client.generate("a fox")


def test_the_greeting_names_a_command_that_works(served: Served) -> None:
    command = served.server.line("  forebay ").split(maxsplit=1)[1].strip()
    result = subprocess.run(
        f"{sys.executable} -m forebay {command}",
        shell=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('{"index": 0, ')
