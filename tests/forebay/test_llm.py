"""Offline inference on the embedded model: every form of input, what comes out of it, and that errors leave nothing behind."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: offline inference needs forebay[executor]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from forebay import LLM, RequestOutput, SamplingParams  # noqa: E402
from forebay.errors import FailedPrecondition, InvalidRequest, NotFound, NotOffered  # noqa: E402
from forebay.v1.errors_pb2 import ErrorReason  # noqa: E402

MODEL = Path(__file__).parents[2] / "demo" / "model"
PROMPTS = ["A generator is", "The with statement is used to", "Return the number of"]
GREEDY = SamplingParams(temperature=0, max_tokens=24)
CHAT = [{"role": "user", "content": "What is the json module for?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The embedded model in float32."""
    with LLM(str(MODEL), dtype="float32", kv_cache_memory_bytes=32 << 20, num_threads=1, disable_tqdm=True) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the engine holds no request and no block."""
    yield
    if "llm" in request.fixturenames:
        llm = request.getfixturevalue("llm")
        load = llm._engine.load()
        assert not llm._engine.has_work
        assert (load.num_running, load.num_waiting, load.num_used_blocks) == (0, 0, 0)


@functools.cache
def reference() -> tuple[Any, Any]:
    """The model and tokenizer of transformers."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(MODEL)
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), tokenizer


@functools.cache
def reference_ids(prompt: str) -> tuple[list[int], list[int]]:
    """The prompt's ids, and the ids that transformers continues it with, greedily."""
    model, tokenizer = reference()
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        ids = model.generate(prompt_ids, do_sample=False, max_new_tokens=GREEDY.max_tokens)
    return prompt_ids[0].tolist(), ids[0, prompt_ids.shape[1] :].tolist()


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_greedy_ids_are_those_of_transformers_and_the_text_is_their_decoding(llm: LLM) -> None:
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, GREEDY), strict=True):
        prompt_ids, ids = reference_ids(prompt)
        assert (output.prompt, output.prompt_token_ids, output.finished) == (prompt, prompt_ids, True)
        assert output.num_prompt_tokens == len(prompt_ids)
        assert output.outputs[0].token_ids == ids
        assert output.outputs[0].text == reference()[1].decode(ids, skip_special_tokens=True)
        assert output.outputs[0].finish_reason == ("length" if len(ids) == GREEDY.max_tokens else "stop")
        assert output.outputs[0].stop_reason is None


def test_every_form_of_a_prompt_means_the_same(llm: LLM) -> None:
    text, (ids, _) = PROMPTS[0], reference_ids(PROMPTS[0])
    expected = texts(llm.generate(text, GREEDY))
    assert expected[0]
    forms: list[Any] = [
        [text], {"prompt": text}, [{"prompt": text}], {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}],
        {"prompt": text, "prompt_token_ids": ids}, ids, [ids],
    ]  # fmt: skip
    for form in forms:
        assert texts(llm.generate(form, GREEDY)) == expected, form
    assert texts(llm.generate(prompt_token_ids=ids, sampling_params=GREEDY)) == expected
    assert texts(llm.generate(prompt_token_ids=[ids, ids], sampling_params=GREEDY)) == expected * 2


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_chat_renders_the_models_template(llm: LLM) -> None:
    (output,) = llm.chat(CHAT, GREEDY)
    _, tokenizer = reference()
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(output.prompt_token_ids) == text
    assert (
        output.outputs[0].text
        == llm.generate(prompt_token_ids=output.prompt_token_ids, sampling_params=GREEDY)[0].outputs[0].text
    )
    assert output.prompt is None


def test_several_conversations_are_answered_in_order(llm: LLM) -> None:
    other = [{"role": "user", "content": "What does shutil.copytree do?"}]
    assert texts(llm.chat([CHAT, other], GREEDY)) == texts(llm.chat(CHAT, GREEDY)) + texts(llm.chat(other, GREEDY))


def test_an_answer_can_be_continued(llm: LLM) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    (output,) = llm.chat(begun, GREEDY, continue_final_message=True)
    assert reference()[1].decode(output.prompt_token_ids).endswith("It is")
    (opened,) = llm.chat(begun, GREEDY)
    assert reference()[1].decode(opened.prompt_token_ids).endswith("<|im_start|>assistant\n")


def test_one_seed_gives_n_sequences_that_differ_and_repeat(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, seed=7, max_tokens=12)
    first, second = (llm.generate(PROMPTS[0], params)[0] for _ in range(2))
    assert [sequence.index for sequence in first.outputs] == [0, 1, 2, 3]
    assert len({sequence.text for sequence in first.outputs}) > 1
    assert first.outputs == second.outputs and first.seed == 7


def test_without_a_seed_a_fresh_one_is_drawn_and_told(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12)
    (output,) = llm.generate(PROMPTS[0], params)
    (again,) = llm.generate(PROMPTS[0], SamplingParams(temperature=1.0, max_tokens=12, seed=output.seed))
    assert again.outputs == output.outputs


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_cuts_where_it_begins_or_ends(include: bool, llm: LLM) -> None:
    whole = texts(llm.generate(PROMPTS[1], GREEDY))[0]
    stop = whole[20:27]
    params = SamplingParams(
        temperature=0, max_tokens=24, stop=["never there", stop], include_stop_str_in_output=include
    )
    (output,) = llm.generate(PROMPTS[1], params)
    sequence, start = output.outputs[0], whole.find(stop)
    assert sequence.text == whole[: start + len(stop) if include else start]
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", stop)
    assert stop in reference()[1].decode(sequence.token_ids)
    assert len(sequence.token_ids) < 24


def test_a_stop_token_of_the_request_is_told_and_the_models_own_is_not(llm: LLM) -> None:
    _, ids = reference_ids(PROMPTS[1])
    stop = ids[5]
    (output,) = llm.generate(PROMPTS[1], SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop]))
    sequence = output.outputs[0]
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", stop)
    assert sequence.token_ids == ids[: ids.index(stop) + 1]
    (output,) = llm.generate("Return the number of", SamplingParams(temperature=0, max_tokens=100))
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    (output,) = llm.generate("Return the number of", SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    assert (output.outputs[0].finish_reason, len(output.outputs[0].token_ids)) == ("length", 100)


def test_logprobs_are_those_of_the_models_own_distribution(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=5, logprob_token_ids=[11])
    (output,) = llm.generate(PROMPTS[1], params)
    prompt_ids, sequence = output.prompt_token_ids, output.outputs[0]
    model, tokenizer = reference()
    with torch.inference_mode():
        rows = model(torch.tensor([prompt_ids + sequence.token_ids])).logits[0].float().log_softmax(-1)
    assert len(sequence.logprobs) == len(sequence.token_ids) == 6
    for step, (token_id, entry) in enumerate(zip(sequence.token_ids, sequence.logprobs, strict=True)):
        row = rows[len(prompt_ids) - 1 + step]
        assert set(entry) == {token_id, 11, *row.topk(3).indices.tolist()}
        assert all(math.isclose(value.logprob, row[i], abs_tol=1e-3) for i, value in entry.items())
        assert entry[token_id].rank == 1 and entry[token_id].decoded_token == tokenizer.decode([token_id])
        assert [entry[i].rank for i in row.topk(3).indices.tolist()] == [1, 2, 3]
    assert math.isclose(
        sequence.cumulative_logprob, sum(e[i].logprob for i, e in zip(sequence.token_ids, sequence.logprobs))
    )
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(prompt_ids)
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        row, token_id = rows[position - 1], prompt_ids[position]
        assert set(entry) == {token_id, *row.topk(5).indices.tolist()}
        assert math.isclose(entry[token_id].logprob, row[token_id], abs_tol=1e-3)
        assert entry[token_id].rank == int((row > row[token_id]).sum()) + 1
        assert [entry[i].rank for i in row.topk(5).indices.tolist()] == [1, 2, 3, 4, 5]


def test_logprobs_are_none_where_nobody_asked(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=2))
    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None and output.outputs[0].cumulative_logprob is None


def test_a_lower_priority_value_runs_earlier() -> None:
    with LLM(
        str(MODEL), dtype="float32", max_num_seqs=1, kv_cache_memory_bytes=8 << 20, num_threads=1, disable_tqdm=True
    ) as llm:
        order: list[int] = []
        step = llm._engine.step

        def watched() -> Any:
            output = step()
            order.extend(token.sequence.request.priority for token in output.tokens if token.token_index == 0)
            return output

        llm._engine.step = watched
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=4), priority=[5, 0, -5])
    assert order == [-5, 0, 5]
    assert [output.prompt for output in outputs] == PROMPTS


def test_each_prompt_can_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (1, 2, 3)]
    outputs = llm.generate(PROMPTS, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    with pytest.raises(InvalidRequest, match="3 prompts and 2 sampling_params"):
        llm.generate(PROMPTS, params[:2])
    with pytest.raises(InvalidRequest, match="3 prompts and 1 priorities"):
        llm.generate(PROMPTS, params, priority=[1])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", ErrorReason.ERROR_REASON_EMPTY_PROMPT),
        ([], ErrorReason.ERROR_REASON_EMPTY_PROMPT),
        ([4096], ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE),
        ([-1], ErrorReason.ERROR_REASON_INVALID_FIELD),
        ({"prompt": 5}, ErrorReason.ERROR_REASON_INVALID_FIELD),
        ({"prompt": "x", "multi_modal_data": {"image": b"GIF89a"}}, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE),
        (5.5, ErrorReason.ERROR_REASON_INVALID_FIELD),
        ([7] * 1024, ErrorReason.ERROR_REASON_TOO_LONG),
    ],
    ids=["no-text", "no-ids", "id-too-large", "negative-id", "no-prompt", "images", "a-number", "too-long"],
)
def test_a_bad_prompt_among_good_ones_raises_before_anything_runs(bad: Any, reason: int, llm: LLM) -> None:
    steps = llm._engine.num_steps
    with pytest.raises(InvalidRequest) as raised:
        llm.generate([PROMPTS[0], bad, PROMPTS[1]], GREEDY)
    assert raised.value.reason == reason
    assert llm._engine.num_steps == steps


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"n": 0},
        {"max_tokens": 0},
        {"max_tokens": 5000},
        {"top_k": -2},
    ],
    ids=str,
)
def test_bad_parameters_raise_before_anything_runs(params: dict[str, Any], llm: LLM) -> None:
    steps = llm._engine.num_steps
    with pytest.raises(InvalidRequest, match=next(iter(params))):
        llm.generate(PROMPTS, [GREEDY, SamplingParams(**params), GREEDY])
    assert llm._engine.num_steps == steps


def test_an_interrupted_run_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = llm._engine.step, iter(range(3))

    def interrupted() -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm._engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY)


def test_a_prompt_can_be_cut_from_its_beginning(llm: LLM) -> None:
    (output,) = llm.generate([[7] * 2000], SamplingParams(temperature=0, max_tokens=2, truncate_prompt_tokens=5))
    assert output.prompt_token_ids == [7] * 5


def test_without_max_tokens_the_context_is_the_limit(llm: LLM) -> None:
    (output,) = llm.generate([[7] * 1000], SamplingParams(temperature=0, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 24 and output.outputs[0].finish_reason == "length"


def test_either_prompts_or_ids_are_given(llm: LLM) -> None:
    for arguments in ({}, {"prompts": "x", "prompt_token_ids": [1]}):
        with pytest.raises(InvalidRequest, match="either prompts or prompt_token_ids"):
            llm.generate(**arguments)


def test_a_folder_without_a_tokenizer_serves_token_ids(tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(MODEL / name, tmp_path)
    prompt_ids, ids = reference_ids(PROMPTS[0])
    with LLM(str(tmp_path), dtype="float32", kv_cache_memory_bytes=8 << 20, num_threads=1, disable_tqdm=True) as llm:
        params = SamplingParams(temperature=0, max_tokens=24, logprobs=1)
        (output,) = llm.generate(prompt_token_ids=prompt_ids, sampling_params=params)
        assert output.outputs[0].token_ids == ids and output.outputs[0].text == ""
        assert all(value.decoded_token is None for entry in output.outputs[0].logprobs for value in entry.values())
        for call in (
            lambda: llm.generate("text"),
            lambda: llm.chat(CHAT),
            lambda: llm.generate([[1]], SamplingParams(stop="x")),
        ):
            with pytest.raises(FailedPrecondition) as raised:
                call()
            assert raised.value.reason == ErrorReason.ERROR_REASON_NO_TOKENIZER


def test_the_models_own_sampling_defaults_hold_where_nothing_is_set(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2], "temperature": 0.0}')
    _, ids = reference_ids(PROMPTS[0])
    with LLM(str(tmp_path), dtype="float32", kv_cache_memory_bytes=8 << 20, num_threads=1, disable_tqdm=True) as llm:
        (output,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=24))
        assert output.outputs[0].token_ids == ids
        (hot,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=24, temperature=2.0, seed=0))
        assert hot.outputs[0].token_ids != ids


def test_what_is_not_served_says_so() -> None:
    with pytest.raises(NotOffered, match="task 'dance'"):
        LLM(str(MODEL), task="dance")
    with pytest.raises(NotFound, match="no folder"):
        LLM("/no/such/model")


def test_a_closed_llm_cannot_be_used() -> None:
    llm = LLM(str(MODEL), load_format="dummy", kv_cache_memory_bytes=8 << 20, disable_tqdm=True)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("x")
