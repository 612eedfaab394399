"""Inputs to pool as ids: equal to the tokenizer's own, pairs and cuts included, with named prompts before texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from forebay.errors import CheckpointError, FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2
from preprocess.pooling_encoder import PoolingInput
from preprocess.preprocessor import Preprocessor
from preprocess.sentence_prompts import SentencePrompts, read_sentence_prompts
from preprocess.tokenizer import TextTokenizer
from tests.frontend.pooling_tier import ids_prompt, preprocessor_of, text_prompt, with_pairs
from tests.preprocess.tokenizer_zoo import CHATML, tokenizer_of, write_folder

QUERY, DOCUMENT = "hello my name is", "the quick brown fox jumps over the lazy dog"


def roberta_like() -> Tokenizer:
    """<s> A </s></s> B </s>, all of it one segment."""
    tokenizer = tokenizer_of("byte_level")
    sep, cls = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls)
    return tokenizer


@pytest.mark.parametrize("max_tokens", [None, 100, 14, 12])
@pytest.mark.parametrize("make", [with_pairs, roberta_like], ids=["bert", "roberta"])
def test_pairs_are_those_of_transformers(make, max_tokens: int | None) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=make())
    cut = {} if max_tokens is None else {"truncation": "only_second", "max_length": max_tokens}
    if make is roberta_like and max_tokens is not None:
        cut["max_length"] = max_tokens = max_tokens + 12
    expected = reference(QUERY, DOCUMENT, return_token_type_ids=True, **cut)
    found = preprocessor_of(tokenizer=make()).pooling.encode_pair(
        text_prompt(QUERY), text_prompt(DOCUMENT), num_token_types=2, max_tokens=max_tokens
    )
    assert (found.token_ids, found.type_ids) == (expected.input_ids, expected.token_type_ids)
    assert max_tokens is None or len(found.token_ids) <= max_tokens


@pytest.mark.parametrize("max_tokens", [None, 100, 5, 3])
def test_texts_are_those_of_transformers_and_a_cut_keeps_their_end_and_the_special_tokens(
    max_tokens: int | None,
) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=with_pairs(), truncation_side="left")
    cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
    found = preprocessor_of().pooling.encode(text_prompt(DOCUMENT), num_token_types=1, max_tokens=max_tokens)
    assert found == PoolingInput(reference(DOCUMENT, **cut).input_ids, [])


def test_a_cut_that_leaves_no_room_for_text_is_refused() -> None:
    encoder = preprocessor_of().pooling
    with pytest.raises(InvalidRequest, match="adds 2 tokens"):
        encoder.encode(text_prompt(DOCUMENT), num_token_types=1, max_tokens=2)
    with pytest.raises(InvalidRequest, match="no room for a document"):
        encoder.encode_pair(text_prompt(DOCUMENT), text_prompt("a"), num_token_types=1, max_tokens=6)


def test_control_tokens_in_texts_of_a_pair_are_plain_text() -> None:
    tokenizer = with_pairs()
    found = preprocessor_of().pooling.encode_pair(
        text_prompt("a [SEP] b"), text_prompt("[CLS] c"), num_token_types=2, max_tokens=None
    )
    assert found.token_ids.count(tokenizer.token_to_id("[SEP]")) == 2
    assert found.token_ids.count(tokenizer.token_to_id("[CLS]")) == 1


def test_token_ids_keep_their_segments_and_a_cut_keeps_the_end_of_both() -> None:
    encoder, prompt = preprocessor_of().pooling, ids_prompt(1, 2, 3, types=(0, 0, 1))
    assert encoder.encode(prompt, num_token_types=2) == PoolingInput([1, 2, 3], [0, 0, 1])
    assert encoder.encode(prompt, num_token_types=2, max_tokens=2) == PoolingInput([2, 3], [0, 1])
    assert encoder.encode(ids_prompt(1, 2), num_token_types=2, max_tokens=9) == PoolingInput([1, 2], [])
    with pytest.raises(InvalidRequest, match="token types"):
        preprocessor_of().encode(prompt)


def test_the_prompts_own_tokens_are_told_where_a_mean_leaves_them_out() -> None:
    tokenizer, instruction = with_pairs(), "hello my "
    for counted in (True, False):
        prompts = SentencePrompts({"query": instruction, "none": ""}, default_name="query", counted=counted)
        encoder = preprocessor_of(prompts).pooling
        for name in ("", "query"):
            found = encoder.encode(text_prompt(DOCUMENT), num_token_types=1, prompt_name=name)
            assert found.token_ids == tokenizer.encode(instruction + DOCUMENT).ids
            num = 1 + len(tokenizer.encode(instruction, add_special_tokens=False).ids)
            assert found.num_instruction_tokens == (0 if counted else num)
        assert encoder.encode(text_prompt(DOCUMENT), num_token_types=1, prompt_name="none").num_instruction_tokens == 0
        cut = encoder.encode(text_prompt(DOCUMENT), num_token_types=1, max_tokens=6)
        assert cut.num_instruction_tokens == (0 if counted else 1)  # [CLS] alone is left of it


def test_named_prompts_are_for_texts() -> None:
    encoder = preprocessor_of(SentencePrompts({"query": "q: "})).pooling
    with pytest.raises(InvalidRequest, match="this input is none"):
        encoder.encode(ids_prompt(1), num_token_types=1, prompt_name="query")
    with pytest.raises(InvalidRequest, match="it has query"):
        encoder.encode(text_prompt("a"), num_token_types=1, prompt_name="document")
    with pytest.raises(InvalidRequest, match="it has none"):
        preprocessor_of().pooling.encode(text_prompt("a"), num_token_types=1, prompt_name="document")


def test_what_cannot_be_encoded_is_refused() -> None:
    without_tokenizer = Preprocessor(None).pooling
    for prompt in (text_prompt(""), ids_prompt(), prompt_pb2.Prompt()):
        with pytest.raises(InvalidRequest):
            without_tokenizer.encode(prompt, num_token_types=1)
    with pytest.raises(FailedPrecondition, match="without a tokenizer"):
        without_tokenizer.encode(text_prompt("a"), num_token_types=1)
    with pytest.raises(FailedPrecondition, match="without a tokenizer"):
        without_tokenizer.encode_pair(text_prompt("a"), text_prompt("b"), num_token_types=1)
    with pytest.raises(InvalidRequest, match="no encoder"):
        prompt = prompt_pb2.Prompt(text="a", decoder_token_ids=prompt_pb2.TokenIds())
        without_tokenizer.encode(prompt, num_token_types=1)


def test_chats_end_without_an_opening_for_an_answer_unless_they_ask_for_one(tmp_path: Path) -> None:
    preprocessor = Preprocessor.load(write_folder(tmp_path, chat_template=CHATML))
    message = prompt_pb2.ChatMessage(role=prompt_pb2.CHAT_ROLE_ASSISTANT, content=[prompt_pb2.ContentPart(text="fox")])
    for asked, expected in ((None, False), (False, False), (True, True)):
        chat = prompt_pb2.Chat(messages=[message], add_generation_prompt=asked)
        found = preprocessor.pooling.encode(prompt_pb2.Prompt(chat=chat), num_token_types=1)
        chat.add_generation_prompt = expected
        assert found.token_ids == preprocessor.render_chat(chat)[1]
        assert chat.messages == [message]


def test_named_prompts_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    assert read_sentence_prompts(tmp_path) == SentencePrompts()
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "q: "}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    )
    pooling = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Transformer", "path": ""}, pooling])
    )
    assert read_sentence_prompts(tmp_path) == SentencePrompts({"query": "q: "})
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": False}))
    assert read_sentence_prompts(tmp_path) == SentencePrompts({"query": "q: "}, None, counted=False)


@pytest.mark.parametrize(
    "config", [{"prompts": ["a"]}, {"prompts": {"a": 1}}, {"prompts": {"a": "b"}, "default_prompt_name": "c"}]
)
def test_named_prompts_that_cannot_be_read_are_an_error_of_the_checkpoint(tmp_path: Path, config: dict) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json"):
        read_sentence_prompts(tmp_path)


def test_a_pooling_outside_the_checkpoint_is_not_read(tmp_path: Path) -> None:
    module = {"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        read_sentence_prompts(tmp_path)


def test_pairs_need_no_template_of_the_tokenizer() -> None:
    tokenizer = tokenizer_of("byte_level")
    encoder = Preprocessor(TextTokenizer(tokenizer_of("byte_level"), named_tokens={}, chat_template=None)).pooling
    found = encoder.encode_pair(text_prompt("a b"), text_prompt("c"), num_token_types=0)
    assert found == PoolingInput(tokenizer.encode("a b").ids + tokenizer.encode("c").ids, [])
