"""The verbs that pool, against a real frontend: inputs of every form, results in both, and errors of one line."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forebay.cli import main
from forebay.errors import EXIT_BAD_CONFIG
from tests.frontend.fake_executor import pooled_at
from tests.frontend.harness import Tier, tier
from tests.frontend.pooling_tier import (
    PROMPTS,
    SIZE,
    classifier,
    embedder,
    preprocessor_of,
    reranker,
    rewarder,
    vector_of,
    with_pairs,
)

TEXTS = ["the quick fox", "hello my name", "a dog"]
LABELS = ("bad", "good", "odd")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb against a tier beside its event loop; gives its exit status and what it printed to either stream."""

    async def run(up: Tier, verb: str, *arguments: str) -> tuple[int, str, str]:
        command = [verb, *arguments, "--server", f"127.0.0.1:{up.port}"]
        status = await asyncio.wait_for(asyncio.to_thread(main, command), 20)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def ids(*texts: str) -> list[int]:
    return with_pairs().encode(*texts).ids


async def test_embed_prints_json_lines(run: Any) -> None:
    async with tier(embedder(), preprocessor=preprocessor_of(PROMPTS)) as up:
        status, out, err = await run(up, "embed", *TEXTS)
        _, named, _ = await run(up, "embed", TEXTS[0], "--prompt-name", "query", "--dimensions", "3", "--no-normalize")
        assert up.executor.submits[-1].pooling.HasField("normalize") and not up.executor.submits[-1].pooling.normalize
    assert (status, err) == (0, "")
    assert lines(out) == [{"index": i, "embedding": vector_of(ids(text)).tolist()} for i, text in enumerate(TEXTS)]
    assert lines(named)[0]["embedding"] == vector_of(ids("hello my the quick fox"), 3).tolist()


async def test_embed_writes_what_numpy_reads(run: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("\n".join(TEXTS) + "\n\n")
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        arguments = ["--input", str(source), "--output", str(target), "--batch-size", "2"]
        assert (await run(up, "embed", *arguments))[:2] == (0, "")
        assert up.ledger.done == 2
    found = np.load(target)
    assert found.dtype == np.float32 and found.shape == (3, SIZE) and target.stat().st_size == 128 + found.nbytes
    assert np.array_equal(found, np.stack([vector_of(ids(text)) for text in TEXTS]))


async def test_json_lines_hold_inputs_of_every_form(run: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs = [TEXTS[0], [5, 6], {"prompt": TEXTS[1]}, {"prompt_token_ids": [7], "token_type_ids": [1]}]
    source.write_text("".join(json.dumps(item) + "\n" for item in inputs))
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        assert (await run(up, "embed", "--input", str(source), "--output", str(target)))[0] == 0
    expected = [ids(TEXTS[0]), [5, 6], ids(TEXTS[1]), [7]]
    assert [line["embedding"] for line in lines(target.read_text())] == [vector_of(one).tolist() for one in expected]


async def test_classify_names_the_likeliest_class(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    async with tier(classifier(), preprocessor=preprocessor_of(labels=LABELS)) as up:
        status, out, _ = await run(up, "classify", "--raw")
        assert status == 0 and up.executor.submits[0].pooling.HasField("activation")
    for line, text in zip(lines(out), TEXTS, strict=True):
        expected = vector_of(ids(text), 3)
        best = int(expected.argmax())
        assert (line["class"], line["label"], line["probs"]) == (best, LABELS[best], expected.tolist())


async def test_score_takes_a_query_and_documents_or_pairs_of_a_file(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"query": "hello", "document": text}) + "\n" for text in TEXTS))
    async with tier(reranker(), preprocessor=preprocessor_of()) as up:
        _, given, _ = await run(up, "score", "hello", *TEXTS)
        _, of_file, _ = await run(up, "score", "--input", str(source), "--batch-size", "2")
    assert lines(given) == lines(of_file)
    assert [line["score"] for line in lines(given)] == [vector_of(ids("hello", text), 1)[0] for text in TEXTS]


async def test_reward_prints_a_table_per_input(run: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("[1, 2, 3]\n[4]\n")
    async with tier(rewarder(), preprocessor=preprocessor_of()) as up:
        _, out, _ = await run(up, "reward", "--input", str(source), "--activation")
        assert up.executor.submits[0].pooling.activation
        status, _, err = await run(up, "reward", "a", "--output", str(tmp_path / "x.npy"))
        assert status == EXIT_BAD_CONFIG and "JSON lines" in err
    for line, token_ids in zip(lines(out), [[1, 2, 3], [4]], strict=True):
        rows = range(len(token_ids))
        assert line["rewards"] == [[pooled_at(token_ids, row, column) for column in range(2)] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["embed", "--input", "FILE"], '"a"\nnot json\n', "line 2 of --input: not JSON"),
        (["embed", "--input", "FILE"], "5\n", "line 1 of --input: prompt is a int"),
        (["embed", "--input", "FILE"], '{"role": "user", "content": "a"}\n', "line 1 of --input: prompt has the keys"),
        (["score", "--input", "FILE"], '"a"\n', 'line 1 of --input: no object with "query" and "document"'),
        (["embed", "a", "--input", "FILE"], "", "either as arguments or with --input"),
        (["embed", "--input", "/no/such/file"], "", "/no/such/file"),
        (["embed", "a", "--output", "/no/such/folder/x.jsonl"], "", "/no/such/folder/x.jsonl"),
        (["embed", "a", "--output", "/no/such/folder/x.npy"], "", "/no/such/folder/x.npy"),
        (["embed", "a", "--batch-size", "0"], "", "--batch-size is 0"),
        (["embed", "a", "--dimensions", "0"], "", "dimensions is 0"),
        (["embed", "a", "--format", "int4"], "", "int4"),
        (["classify", "a"], "", "this model serves embed, not classify"),
    ],
)
async def test_what_cannot_work_is_one_line_and_exit_status_78(
    run: Any, tmp_path: Path, arguments: list[str], content: str, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    async with tier(embedder(), preprocessor=preprocessor_of()) as up:
        given = [str(source) if argument == "FILE" else argument for argument in arguments]
        status, out, err = await run(up, *given)
    assert (status, out) == (EXIT_BAD_CONFIG, "") and message in err and err.count("\n") == 1


async def test_an_error_of_a_later_batch_says_where_it_began(run: Any) -> None:
    async with tier(embedder(max_model_len=5), preprocessor=preprocessor_of()) as up:
        status, out, err = await run(up, "embed", "a", "a", "the quick brown fox jumps", "--batch-size", "2")
    assert status == EXIT_BAD_CONFIG and len(lines(out)) == 2
    assert "in the call that begins with input 2: inputs[0]: the prompt has" in err
