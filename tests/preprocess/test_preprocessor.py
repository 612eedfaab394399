"""A checkpoint folder as the CPU tier sees it: prompts to ids and back, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from forebay.errors import CheckpointError, FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2, sampling_pb2
from preprocess.preprocessor import Preprocessor
from preprocess.tokenizer import TextTokenizer
from tests.preprocess.tokenizer_zoo import CHATML, tokenizer_of, write_folder

KINDS = ["byte_level", "byte_fallback", "metaspace_unigram", "wordpiece", "word_suffix_bpe"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Preprocessor:
    return Preprocessor.load(write_folder(tmp_path_factory.mktemp("model"), chat_template=CHATML))


def preprocessor_of(kind: str) -> Preprocessor:
    return Preprocessor(TextTokenizer(tokenizer_of(kind), named_tokens={}, chat_template=None))


def text_prompt(text: str) -> prompt_pb2.Prompt:
    return prompt_pb2.Prompt(text=text)


def ids_prompt(*ids: int) -> prompt_pb2.Prompt:
    return prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=ids))


def chat_prompt(*texts: str) -> prompt_pb2.Prompt:
    messages = [
        prompt_pb2.ChatMessage(role=prompt_pb2.CHAT_ROLE_USER, content=[prompt_pb2.ContentPart(text=text)])
        for text in texts
    ]
    return prompt_pb2.Prompt(chat=prompt_pb2.Chat(messages=messages))


# Prompts.


@pytest.mark.parametrize(
    "prompt", [prompt_pb2.Prompt(), text_prompt(""), ids_prompt()], ids=["absent", "text", "token_ids"]
)
def test_empty_prompt_is_refused(loaded, prompt):
    with pytest.raises(InvalidRequest) as caught:
        loaded.encode(prompt)
    assert caught.value.reason_name == "EMPTY_PROMPT"


def test_text_that_has_no_tokens_is_an_empty_prompt():
    with pytest.raises(InvalidRequest) as caught:
        preprocessor_of("wordpiece").encode(text_prompt(" \n"), add_special_tokens=False)
    assert caught.value.reason_name == "EMPTY_PROMPT"


def test_token_ids_are_taken_as_they_are(loaded):
    assert loaded.encode(ids_prompt(5, 2**32 - 1, 5)) == [5, 2**32 - 1, 5]


def test_special_tokens_are_added_to_text_unless_told_otherwise():
    preprocessor = preprocessor_of("byte_fallback")
    start = preprocessor.tokenizer.token_to_id("<s>")
    plain = preprocessor.encode(text_prompt("Hello"), add_special_tokens=False)
    assert preprocessor.encode(text_prompt("Hello")) == [start, *plain]


def test_names_of_special_tokens_in_a_text_prompt_are_text(loaded):
    ids = loaded.encode(text_prompt("a<|im_end|>b"))
    assert loaded.tokenizer.token_to_id("<|im_end|>") not in ids
    assert loaded.decode(ids) == "a<|im_end|>b"


def test_chat_becomes_the_ids_of_its_rendered_text(loaded):
    text, ids = loaded.render_chat(chat_prompt("Hello").chat)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.encode(chat_prompt("Hello")) == ids
    assert loaded.decode(ids, skip_special_tokens=False) == text


def test_decoding_leaves_special_tokens_out_unless_told_otherwise(loaded):
    end = loaded.tokenizer.token_to_id("<|im_end|>")
    assert loaded.decode([end]) == ""
    assert loaded.decode([end], skip_special_tokens=False) == "<|im_end|>"


def test_tokens_are_as_the_vocabulary_writes_them(loaded):
    end = loaded.tokenizer.token_to_id("<|im_end|>")
    assert loaded.tokens([end, 10**6]) == ["<|im_end|>", ""]
    assert loaded.decode([10**6]) == ""


# Length, looked at before any work.


class Untouched:
    """A tokenizer that must not be asked to encode."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.max_text_bytes = tokenizer.max_text_bytes


@pytest.mark.parametrize(
    "prompt", [text_prompt("é" * 100_000), chat_prompt("é" * 50_000, "é" * 50_000)], ids=["text", "chat"]
)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(kind, prompt):
    tokenizer = TextTokenizer(tokenizer_of(kind), named_tokens={}, chat_template=None)
    with pytest.raises(InvalidRequest, match=r"200,000 bytes.* 100 tokens") as caught:
        Preprocessor(Untouched(tokenizer)).encode(prompt, max_tokens=100)
    assert caught.value.reason_name == "TOO_LONG"
    assert [field for field, _ in caught.value.fields] == ["prompt"]


def test_text_that_may_fit_is_tokenized_whatever_comes_out():
    preprocessor = preprocessor_of("byte_level")
    assert len(preprocessor.encode(text_prompt("é" * 40), max_tokens=20)) > 20  # the caller counts ids
    assert preprocessor.encode(text_prompt("é" * 100), max_tokens=None)


def test_vocabulary_without_a_bound_tokenizes_any_length():
    assert preprocessor_of("wordpiece").encode(text_prompt("the " * 1000), max_tokens=10)


# Bad words.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["fox", "the", "Köln", "lazy dog", "x"])
def test_bad_word_is_found_wherever_it_stands_in_a_text(kind, word):
    preprocessor = preprocessor_of(kind)
    sequences = preprocessor.bad_word_ids(word)
    assert all(sequences) and len({tuple(ids) for ids in sequences}) == len(sequences)
    for text in (word, f"It is {word}", f"over\n{word}"):
        ids = preprocessor.encode(text_prompt(text), add_special_tokens=False)
        found = [ids[i : i + len(bad)] == bad for bad in sequences for i in range(len(ids))]
        assert any(found), text


@pytest.mark.parametrize("kind", KINDS)
def test_bad_word_has_no_special_tokens_around_it(kind):
    preprocessor = preprocessor_of(kind)
    special = {i for i, token in preprocessor.tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = {preprocessor.tokenizer.token_to_id(name) for name in ("<unk>", "[UNK]")}
    assert not (special - unknown) & {i for ids in preprocessor.bad_word_ids("fox </s>") for i in ids}


def test_leading_space_of_a_bad_word_changes_only_how_it_starts_a_text():
    preprocessor = preprocessor_of("byte_level")
    assert preprocessor.bad_word_ids(" fox")[0] == preprocessor.encode(text_prompt(" fox"))
    assert preprocessor.bad_word_ids(" fox")[1:] == preprocessor.bad_word_ids("fox")[:1]


def test_bad_word_that_merges_with_a_line_break_bans_no_part_of_itself():
    vocab = {token: i for i, token in enumerate(["a", " ", "\n", "b", "c", "\nb"])}
    backend = Tokenizer(models.BPE(vocab, [("\n", "b")]))
    preprocessor = Preprocessor(TextTokenizer(backend, named_tokens={}, chat_template=None))
    assert preprocessor.bad_word_ids("bc") == [[vocab["b"], vocab["c"]], [vocab[" "], vocab["b"], vocab["c"]]]


@pytest.mark.parametrize("kind", ["wordpiece", "word_suffix_bpe"])
def test_bad_word_of_white_space_has_no_ids_where_white_space_has_none(kind):
    assert preprocessor_of(kind).bad_word_ids(" ") == []


# Without a tokenizer.


def test_without_a_tokenizer_only_ids_are_served():
    preprocessor = Preprocessor(None)
    assert (preprocessor.has_tokenizer, preprocessor.has_chat_template, preprocessor.tokenizer) == (False, False, None)
    assert preprocessor.tokenizer_vocab_size == 0
    assert preprocessor.encode(ids_prompt(1, 2)) == [1, 2]
    attempts = [
        lambda: preprocessor.encode(text_prompt("Hello")),
        lambda: preprocessor.encode(chat_prompt("Hello")),
        lambda: preprocessor.encode(chat_prompt("Hello"), max_tokens=1),
        lambda: preprocessor.render_chat(chat_prompt("Hello").chat),
        lambda: preprocessor.decode([1]),
        lambda: preprocessor.tokens([1]),
        lambda: preprocessor.bad_word_ids("Hello"),
    ]
    for attempt in attempts:
        with pytest.raises(FailedPrecondition, match="without a tokenizer") as caught:
            attempt()
        assert caught.value.reason_name == "NO_TOKENIZER"


def test_chat_without_a_template_is_refused():
    with pytest.raises(FailedPrecondition, match="without a chat template") as caught:
        preprocessor_of("byte_level").encode(chat_prompt("Hello"))
    assert caught.value.reason_name == "CHAT_TEMPLATE"


# Folders.


def test_folder_gives_what_its_files_say(tmp_path):
    write_folder(tmp_path, chat_template=CHATML)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "temperature": 0.5}))
    preprocessor = Preprocessor.load(tmp_path)
    assert preprocessor.has_tokenizer and preprocessor.has_chat_template
    assert preprocessor.eos_token_ids == (3, 4)
    assert preprocessor.default_sampling == sampling_pb2.SamplingParams(temperature=0.5)
    assert preprocessor.tokenizer_vocab_size == preprocessor.tokenizer.get_vocab_size()


def test_folder_without_tokenizer_files_serves_ids(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    preprocessor = Preprocessor.load(tmp_path)
    assert not preprocessor.has_tokenizer
    assert preprocessor.eos_token_ids == (2,)


def test_tokenizer_may_come_from_a_folder_of_its_own(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    write_folder(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    preprocessor = Preprocessor.load(tmp_path / "weights", tokenizer_folder=tmp_path / "text")
    end = preprocessor.tokenizer.token_to_id("<|im_end|>")
    assert preprocessor.has_tokenizer and preprocessor.eos_token_ids == (2, end)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\xff"], ids=["cut", "list", "not-utf8"])
def test_file_that_cannot_be_read_is_named(tmp_path, name, content):
    write_folder(tmp_path)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        Preprocessor.load(tmp_path)
    assert str(tmp_path) not in caught.value.message


def test_template_that_does_not_compile_leaves_text_served(tmp_path, caplog):
    write_folder(tmp_path, chat_template="{% for %}")
    with caplog.at_level(logging.WARNING):
        preprocessor = Preprocessor.load(tmp_path)
    assert "no chat is served" in caplog.text
    assert not preprocessor.has_chat_template and preprocessor.encode(text_prompt("Hello"))
    with pytest.raises(FailedPrecondition, match="cannot be compiled") as caught:
        preprocessor.encode(chat_prompt("Hello"))
    assert caught.value.reason_name == "CHAT_TEMPLATE"


def test_template_that_refuses_a_greeting_may_serve_other_messages(tmp_path):
    template = (
        "{% if messages[0].role == 'user' %}{{ raise_exception('system first') }}{% endif %}{{ messages[0].content }}"
    )
    preprocessor = Preprocessor.load(write_folder(tmp_path, chat_template=template))
    chat = chat_prompt("Hello")
    with pytest.raises(FailedPrecondition, match="system first"):
        preprocessor.encode(chat)
    chat.chat.messages[0].role = prompt_pb2.CHAT_ROLE_SYSTEM
    assert preprocessor.render_chat(chat.chat)[0] == "Hello"


def test_default_one_of_several_templates_is_used(tmp_path: Path):
    write_folder(tmp_path, chat_template=CHATML)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools!")
    preprocessor = Preprocessor.load(tmp_path)
    assert preprocessor.render_chat(chat_prompt("Hello").chat)[0].startswith("<|im_start|>user")
