"""Chat -> ids: those of transformers where the text is harmless, and text that people send never becomes control tokens."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2
from preprocess.chat import ChatTemplate
from preprocess.chat_messages import ROLES
from preprocess.template_renderer import shared_renderer
from preprocess.tokenizer import TextTokenizer
from tests.preprocess.chat_templates import CONTROL_TOKENS, NAMED, TEMPLATES
from tests.preprocess.tokenizer_zoo import CHATML, tokenizer_of

KINDS = ["byte_level", "byte_fallback", "metaspace_unigram"]
NAMED_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ROLE_NUMBERS = {name: number for number, name in ROLES.items()}

Turns = list[tuple[str, str]]


@functools.cache
def text_tokenizer(kind: str) -> TextTokenizer:
    backend = tokenizer_of(kind)
    backend.add_special_tokens(CONTROL_TOKENS)
    return TextTokenizer(backend, named_tokens=NAMED_TOKENS, chat_template=None)


@functools.cache
def template_of(template: str, kind: str = "byte_level") -> ChatTemplate:
    return ChatTemplate(template, text_tokenizer(kind), shared_renderer())


@functools.cache
def reference(template: str, kind: str = "byte_level") -> PreTrainedTokenizerFast:
    backend = text_tokenizer(kind).backend
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **NAMED_TOKENS)


def chat_of(turns: list[tuple[str, str | list[str]]], name: str | None = None, **options: Any) -> prompt_pb2.Chat:
    messages = []
    for role, content in turns:
        parts = [prompt_pb2.ContentPart(text=text) for text in ([content] if isinstance(content, str) else content)]
        messages.append(prompt_pb2.ChatMessage(role=ROLE_NUMBERS[role], content=parts, name=name))
    return prompt_pb2.Chat(messages=messages, **options)


def expected(turns: Turns, template: str, kind: str, *, tokenize: bool, **options: Any) -> Any:
    """What transformers makes of it."""
    as_parts = template == TEMPLATES["parts_only"]
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text} for role, text in turns
    ]
    options = {"add_generation_prompt": not options.get("continue_final_message"), **options}
    return reference(template, kind).apply_chat_template(messages, tokenize=tokenize, return_dict=False, **options)


def control_ids(ids: list[int], kind: str = "byte_level") -> list[int]:
    """The control tokens among the ids; <unk> is none of them here, for it stands for any text."""
    tokenizer = text_tokenizer(kind)
    controls = {tokenizer.backend.token_to_id(name) for name in tokenizer.control_texts if name != "<unk>"}
    return [i for i in ids if i in controls]


def conversations(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Turns]:
    """Turns that all templates take: a user's and an assistant's alternate, the user's is the last."""
    odd_lists = st.lists(texts, min_size=1, max_size=5).map(lambda found: found[: len(found) - 1 + len(found) % 2])
    return odd_lists.map(lambda found: [(("user", "assistant")[i % 2], text) for i, text in enumerate(found)])


HARMLESS = st.text(st.characters(exclude_categories=("Cs", "Co"), exclude_characters="<>|[]"), max_size=20)
# What people could try: names of control tokens, pieces of them, our own marks, and what templates look for.
SUSPICIOUS = st.lists(
    HARMLESS
    | st.sampled_from([
        *CONTROL_TOKENS, "<s>", "</s>", "<unk>", "<|im_", "end|>", "<|", "|>", "im_end", "user", "<", ">", "<|im<|im_end|>_end|>",
        "\U000f0000", "\U000f0001", "\U000fffff", " ", "\n", "[INST]", "<<SYS>>", "assistant\n", "CONTINUE_FINAL_MESSAGE_TAG ",
    ]),
    max_size=5,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TEMPLATES)
@given(turns=conversations(HARMLESS))
@settings(max_examples=12, deadline=None)
def test_harmless_text_has_the_ids_of_transformers(shape, kind, turns):
    template = TEMPLATES[shape]
    text, ids = template_of(template, kind).render(chat_of(turns))
    assert text == expected(turns, template, kind, tokenize=False)
    assert ids == expected(turns, template, kind, tokenize=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TEMPLATES)
@given(turns=conversations(SUSPICIOUS))
@settings(max_examples=30, deadline=None)
def test_no_text_becomes_a_control_token(shape, kind, turns):
    template = template_of(TEMPLATES[shape], kind)
    _, ids = template.render(chat_of(turns))
    _, plain = template.render(chat_of([(role, "x") for role, _ in turns]))
    assert control_ids(ids, kind) == control_ids(plain, kind)


@pytest.mark.parametrize("shape", [name for name in TEMPLATES if name != "qwen_3"])  # it looks into the text
@given(turns=conversations(SUSPICIOUS))
@settings(max_examples=30, deadline=None)
def test_rendered_text_is_that_of_transformers_whatever_people_send(shape, turns):
    text, ids = template_of(TEMPLATES[shape]).render(chat_of(turns))
    assert text == expected(turns, TEMPLATES[shape], "byte_level", tokenize=False)
    assert text_tokenizer("byte_level").decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["chatml", "llama_3", "zephyr", "qwen_3", "vision", "named"])
@given(turns=conversations(SUSPICIOUS), start=SUSPICIOUS)
@settings(max_examples=15, deadline=None)
def test_final_message_is_continued_where_it_stands(shape, kind, turns, start):
    turns = [*turns, ("assistant", f"Well {start}.")]
    template = TEMPLATES[shape]
    chat = chat_of(turns, continue_final_message=True)
    text, ids = template_of(template, kind).render(chat)
    assert text == expected(turns, template, kind, tokenize=False, continue_final_message=True)
    assert text.endswith(f"Well {start}.")
    _, plain = template_of(template, kind).render(
        chat_of([(role, "x") for role, _ in turns], continue_final_message=True)
    )
    assert control_ids(ids, kind) == control_ids(plain, kind)


def test_template_that_drops_reasoning_still_sees_it():
    turns = [("user", "Why?"), ("assistant", "<think>hm</think>\nSo."), ("user", "<|im_end|> Then?")]
    text, ids = template_of(TEMPLATES["qwen_3"]).render(chat_of(turns))
    assert "hm" not in text and "So." in text
    assert control_ids(ids) == control_ids(
        expected([*turns[:2], ("user", "x")], TEMPLATES["qwen_3"], "byte_level", tokenize=True)
    )


def test_name_of_a_control_token_between_the_brackets_of_a_template_stays_text():
    template = template_of("{% for message in messages %}{{ '<|' + message.content + '|>' }}{% endfor %}")
    text, ids = template.render(chat_of([("user", "im_end")]))
    assert text == text_tokenizer("byte_level").decode(ids, skip_special_tokens=False) == "<|im_end|>"
    assert control_ids(ids) == []


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_that_the_vocabulary_lacks_is_trimmed_beside_control_tokens_too(kind):
    turns = [("user", "\x1f<|im_start|>\x1f"), ("assistant", "ok"), ("user", "x")]
    assert template_of(CHATML, kind).render(chat_of(turns))[0] == expected(turns, CHATML, kind, tokenize=False)


# Roles, parts and names.


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_roles_have_the_names_that_templates_know(role):
    text, _ = template_of(CHATML).render(chat_of([(role, "Hi")], add_generation_prompt=False))
    assert text == f"<|im_start|>{role}\nHi<|im_end|>\n"


@pytest.mark.parametrize("role", [prompt_pb2.CHAT_ROLE_UNSPECIFIED, 99])
def test_message_without_a_known_role_is_refused(role):
    message = prompt_pb2.ChatMessage(role=role, content=[prompt_pb2.ContentPart(text="Hi")])
    assert refused(prompt_pb2.Chat(messages=[chat_of([("user", "x")]).messages[0], message])) == "chat.messages[1].role"


@pytest.mark.parametrize(("shape", "joined"), [("chatml", "one\ntwo"), ("vision", "onetwo"), ("parts_only", "onetwo")])
def test_parts_go_to_templates_that_take_them_and_as_lines_to_others(shape, joined):
    text, _ = template_of(TEMPLATES[shape]).render(chat_of([("user", ["one", "two"])]))
    assert joined in text


def test_single_part_is_a_string_to_a_template_that_tests_for_one():
    parts = "{% for p in m.content %}P{% endfor %}"
    template = template_of(
        "{% for m in messages %}{% if m.content is string %}S{% else %}" + parts + "{% endif %}{% endfor %}"
    )
    assert template.render(chat_of([("user", "a"), ("user", ["a", "b"])]))[0] == "SPP"


def test_name_is_given_to_the_template():
    assert template_of(NAMED).render(chat_of([("user", "Hi")], name="ada"))[0].startswith("<|im_start|>ada\nHi")


@pytest.mark.parametrize("name", ["a", "A_b-9", "x" * 64])
def test_name_of_letters_digits_and_dashes_is_taken(name):
    assert name in template_of(NAMED).render(chat_of([("user", "Hi")], name=name))[0]


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "<|im_end|>", "é", "a\n"])
def test_other_name_is_refused(name):
    assert refused(chat_of([("user", "Hi")], name=name)) == "chat.messages[0].name"


def test_message_without_parts_is_refused():
    message = prompt_pb2.ChatMessage(role=prompt_pb2.CHAT_ROLE_USER)
    assert refused(prompt_pb2.Chat(messages=[message])) == "chat.messages[0].content"


def test_part_without_text_is_refused():
    message = prompt_pb2.ChatMessage(
        role=prompt_pb2.CHAT_ROLE_USER, content=[prompt_pb2.ContentPart(text="a"), prompt_pb2.ContentPart()]
    )
    assert refused(prompt_pb2.Chat(messages=[message])) == "chat.messages[0].content[1]"


def test_conversation_without_messages_is_refused():
    assert refused(prompt_pb2.Chat()) == "chat.messages"


def test_empty_text_is_a_message():
    assert template_of(CHATML).render(chat_of([("user", "")]))[0].startswith("<|im_start|>user\n<|im_end|>")


# How the prompt ends.


def test_generation_prompt_is_there_unless_told_otherwise():
    turns = [("user", "Hi")]
    for options, opened in (
        ({}, True),
        ({"add_generation_prompt": True}, True),
        ({"add_generation_prompt": False}, False),
    ):
        text, _ = template_of(CHATML).render(chat_of(turns, **options))
        assert text.endswith("<|im_start|>assistant\n") == opened


def test_only_an_assistants_message_can_be_continued():
    assert refused(chat_of([("user", "Hi")], continue_final_message=True)) == "chat.continue_final_message"


def test_continuing_excludes_a_generation_prompt():
    chat = chat_of([("assistant", "Hi")], continue_final_message=True, add_generation_prompt=True)
    assert refused(chat) == "chat.add_generation_prompt"


# Templates that refuse.


def test_template_says_why_it_refuses():
    with pytest.raises(FailedPrecondition, match="must alternate user/assistant") as caught:
        template_of(TEMPLATES["llama_2"]).render(chat_of([("user", "a"), ("user", "b")]))
    assert caught.value.reason_name == "CHAT_TEMPLATE"


@pytest.mark.parametrize(
    "template", ["{{ messages[7]['content'] + 1 }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}"]
)
def test_template_that_fails_names_no_secret_of_ours(template):
    with pytest.raises(FailedPrecondition) as caught:
        template_of(template).render(chat_of([("user", "the user's words")]))
    assert caught.value.reason_name == "CHAT_TEMPLATE"
    assert "the user's words" not in caught.value.message and "/" not in caught.value.message


def test_message_that_the_template_drops_cannot_be_continued():
    template = template_of("{% for message in messages[:-1] %}{{ message.content }}{% endfor %}")
    with pytest.raises(FailedPrecondition) as caught:
        template.render(chat_of([("user", "a"), ("assistant", "b")], continue_final_message=True))
    assert caught.value.reason_name == "CHAT_TEMPLATE"


def refused(chat: prompt_pb2.Chat) -> str:
    """The field that the refusal names."""
    with pytest.raises(InvalidRequest) as caught:
        template_of(CHATML).render(chat)
    assert caught.value.reason_name == "INVALID_FIELD"
    ((field, problem),) = caught.value.fields
    assert caught.value.message == f"{field} {problem}"
    return field
