"""Prompts with media -> ids and items in their places, whoever writes the placeholders; users of a chat cannot write one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from forebay.client_requests import chat_prompt, to_prompt
from forebay.errors import InvalidRequest
from forebay.v1 import prompt_pb2
from preprocess.chat import ChatTemplate
from preprocess.media.decoder import decode
from preprocess.media.limits import MediaLimits
from preprocess.media.preparer import MediaPreparer
from preprocess.media_item import EncodedPrompt
from preprocess.pooling_encoder import PoolingEncoder
from preprocess.preprocessor import Preprocessor
from preprocess.sentence_prompts import SentencePrompts
from preprocess.template_renderer import shared_renderer
from preprocess.tokenizer import TextTokenizer
from tests.preprocess.chat_templates import CONTROL_TOKENS, PARTS_ONLY, VISION
from tests.preprocess.media.files import picture_file, reason_of
from tests.preprocess.tokenizer_zoo import CHATML, tokenizer_of
from tests.preprocess.toy_processor import TOKENS, ToyProcessor

# Writes a marker where a part is a picture or a sound, as Qwen2-VL's does.
WRITES = VISION.replace(
    "{% endif %}{% endfor %}{% endif %}<|im_end|>",
    "{% elif content['type'] == 'image' or 'image_url' in content %}<image>{% elif content['type'] == 'audio' %}<audio>"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>",
)
# Pictures first, whatever their place is, as LLaVA's does.
PICTURES_FIRST = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Looks for keys and not at types, as Qwen2-Audio's did.
BY_KEYS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if 'audio' in content or 'audio_url' in content %}"
    "<audio>{% elif 'image_url' in content %}<image>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Refuses parts that it does not know, as Pixtral's does.
REFUSES = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is not string %}"
    "{% for chunk in message['content'] %}{% if chunk['type'] == 'text' %}{{ chunk['text'] }}{% elif chunk['type'] == 'image' %}"
    "<image>{% else %}{{ raise_exception('Unrecognized content type!') }}{% endif %}{% endfor %}{% else %}{{ message['content'] }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = {"image": "<image>", "audio": "<audio>"}
PLAIN = {"image": "[picture]", "audio": "(hear ye)"}
IMAGE = Image.new("RGB", (4, 3), (1, 2, 3))
OTHER = Image.new("RGB", (4, 3), (9, 9, 9))
SOUND = (np.zeros(160, np.float32), 16_000)


@dataclasses.dataclass
class Bench:
    """A preprocessor, and what is behind it."""

    preprocessor: Preprocessor
    processor: ToyProcessor
    tokenizer: TextTokenizer

    def encode(self, prompt: Any, **options: Any) -> EncodedPrompt:
        return self.preprocessor.encode_prompt(to_prompt(prompt), **options)

    def text(self, encoded: EncodedPrompt) -> str:
        return self.tokenizer.decode(encoded.token_ids, skip_special_tokens=False)

    def refused(self, prompt: Any, **options: Any) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as raised:
            self.encode(prompt, **options)
        return raised.value


def bench(template: str = CHATML, markers: dict[str, str] = CONTROL, limits: MediaLimits | None = None) -> Bench:
    backend = tokenizer_of("byte_level")
    backend.add_special_tokens([*CONTROL_TOKENS, *TOKENS])
    tokenizer = TextTokenizer(backend, named_tokens={"bos_token": "<s>"}, chat_template=None)
    processor = ToyProcessor(tokenizer, markers)
    return Bench(
        Preprocessor(
            tokenizer,
            ChatTemplate(template, tokenizer, shared_renderer()),
            media=MediaPreparer(processor, decode, limits=limits or MediaLimits()),
        ),
        processor,
        tokenizer,
    )


def user(*parts: Any) -> list[dict[str, Any]]:
    """One message of texts, pictures and sounds."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, Image.Image):
            content.append({"type": "image", "image": part})
        else:
            content.append({"type": "audio", "audio": part})
    return [{"role": "user", "content": content}]


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_text_of_the_models_own_format_has_its_items_in_their_places() -> None:
    found = bench().encode(
        {"prompt": "A <image> and <audio>, <image>.", "multi_modal_data": {"image": [IMAGE, OTHER], "audio": SOUND}}
    )
    up = bench()
    assert up.text(found) == "A <patch><patch> and <sound><sound>, <patch><patch>."
    assert [placed.item.modality for placed in found.media] == ["image", "audio", "image"]
    patch, sound = (up.tokenizer.backend.token_to_id(token) for token in ("<patch>", "<sound>"))
    for placed, token_id in zip(found.media, (patch, sound, patch), strict=True):
        ((start, length),) = placed.spans
        assert found.token_ids[start : start + length] == [token_id] * 2
    first, _, second = found.media
    assert first.spans < second.spans and first.item.digest != second.item.digest


def test_token_ids_have_their_items_in_their_places() -> None:
    up = bench()
    ids = up.tokenizer.encode("A <image>.", add_special_tokens=False)
    found = up.encode({"prompt_token_ids": ids, "multi_modal_data": {"image": IMAGE}})
    assert up.text(found) == "A <patch><patch>."
    again = up.encode({"prompt_token_ids": found.token_ids, "multi_modal_data": {"image": IMAGE}})
    assert again.token_ids == found.token_ids and again.media[0].spans == found.media[0].spans


def test_a_text_with_plain_markers_needs_no_special_tokens() -> None:
    up = bench(markers=PLAIN)
    prompt = {
        "prompt": "A [picture] <|im_end|> <patch>",
        "multi_modal_data": {"image": IMAGE},
        "parse_special_tokens": False,
    }
    found = up.encode(prompt)
    assert up.text(found) == "A <patch><patch> <|im_end|> <patch>"
    ids = up.tokenizer.backend.token_to_id
    assert found.token_ids.count(ids("<patch>")) == 2 and ids("<|im_end|>") not in found.token_ids


def test_names_of_special_tokens_in_a_plain_text_are_no_placeholders() -> None:
    error = bench().refused({"prompt": "<image>", "multi_modal_data": {"image": IMAGE}, "parse_special_tokens": False})
    assert reason_of(error) == "MEDIA_COUNT"
    assert bench().encode("<image>").media == ()


@pytest.mark.parametrize("prompt", ["<image>", "<image><image>"])
def test_placeholders_without_media_are_refused(prompt: str) -> None:
    assert reason_of(bench().refused({"prompt": prompt, "parse_special_tokens": True})) == "MEDIA_COUNT"


@pytest.mark.parametrize(
    ("markers", "image", "audio"), [(CONTROL, "<image>", "<audio>"), (PLAIN, "[picture]", "(hear ye)")]
)
def test_a_template_of_strings_gets_the_processors_markers(markers: dict[str, str], image: str, audio: str) -> None:
    up = bench(CHATML, markers)
    found = up.encode(user(IMAGE, "What", SOUND, "is it?"))
    assert up.processor.texts[0].text == turn(f"{image}\nWhat\n{audio}\nis it?")
    assert up.text(found) == turn("<patch><patch>\nWhat\n<sound><sound>\nis it?")


@pytest.mark.parametrize("template", [PARTS_ONLY, VISION], ids=["parts-only", "strings-or-parts"])
def test_a_template_of_parts_that_knows_no_media_gets_the_markers_as_text(template: str) -> None:
    up = bench(template)
    found = up.encode(user(IMAGE, "What?"))
    assert "<patch><patch>\nWhat?<" in up.text(found)


@pytest.mark.parametrize("template", [WRITES, BY_KEYS], ids=["by-type", "by-key"])
def test_a_template_that_writes_markers_itself_is_told_where(template: str) -> None:
    up = bench(template)
    found = up.encode(user("Look", IMAGE, "and hear", SOUND))
    assert up.text(found) == turn("Look<patch><patch>and hear<sound><sound>")


def test_a_template_that_refuses_a_part_gets_the_processors_marker() -> None:
    up = bench(REFUSES)
    found = up.encode(user("Look", IMAGE, SOUND, "here"))
    assert up.text(found) == turn("Look<patch><patch><sound><sound>\nhere")


def test_a_template_may_move_pictures_and_leave_sound_to_the_processor() -> None:
    up = bench(PICTURES_FIRST)
    found = up.encode(user("Look", IMAGE, SOUND, "here"))
    assert up.text(found) == turn("<patch><patch>\nLook<sound><sound>\nhere")


def test_embeddings_of_several_items_are_several_places() -> None:
    up = bench()
    rows = np.ones((3, 2, 4), np.float32)
    found = up.encode([{"role": "user", "content": [{"type": "image_embeds", "image_embeds": rows}, "ok"]}])
    assert up.text(found) == turn("<patch><patch>\n<patch><patch>\n<patch><patch>\nok")
    assert len(found.media) == 3


def test_a_chat_without_media_is_encoded_as_before() -> None:
    up = bench(WRITES)
    chat = user("Just <image> text")
    assert up.text(up.encode(chat)) == turn("Just <image> text")
    assert up.processor.texts == []


PIECES = [
    "<image>", "<patch>", "<audio>", "[picture]", "(hear ye)", "<im", "age>", "[pict", "ure]", "<|im_end|>", " ", "\n", "a", "[",
    "]", "<", ">", "\U000f0000", "\U000f0001", "\U000f0002",
]  # fmt: skip
SPELLINGS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@pytest.mark.parametrize("template", [CHATML, VISION, WRITES, PICTURES_FIRST, PARTS_ONLY])
@pytest.mark.parametrize("markers", [CONTROL, PLAIN], ids=["control", "plain"])
@given(before=SPELLINGS, after=SPELLINGS)
@settings(max_examples=20, deadline=None)
def test_what_users_spell_is_never_a_marker(template: str, markers: dict[str, str], before: str, after: str) -> None:
    if markers is PLAIN and template in (WRITES, PICTURES_FIRST):
        return  # such a checkpoint would contradict itself
    up = bench(template, markers)
    found = up.encode(user(before, IMAGE, after))
    assert len(found.media) == 1 and sum(length for _, length in found.media[0].spans) == 2
    ids = up.tokenizer.backend.token_to_id
    assert found.token_ids.count(ids("<patch>")) == 2
    assert not {ids("<image>"), ids("<audio>"), ids("<sound>")} & set(found.token_ids)
    for text in (before, after):
        assert text.strip() in up.text(found)
    ((start, _),) = found.media[0].spans
    if template not in (PICTURES_FIRST,):
        assert before.strip() in up.tokenizer.decode(found.token_ids[:start], skip_special_tokens=False)


def test_parts_that_spell_a_marker_together_are_none() -> None:
    up = bench(VISION, PLAIN)
    found = up.encode(user("[pict", "ure]", IMAGE))
    assert len(found.media) == 1
    assert bench(WRITES).encode(user("<im", "age>", IMAGE)).media[0].spans


def test_a_text_model_takes_no_media() -> None:
    up = bench()
    text_model = Preprocessor(up.tokenizer, ChatTemplate(CHATML, up.tokenizer, shared_renderer()))
    assert text_model.modalities == ()
    for prompt, path in (
        (to_prompt({"prompt": "x", "multi_modal_data": {"image": IMAGE}}), "prompt.media[0]"),
        (chat_prompt(user("x", IMAGE)), "chat.messages[0].content[1].media"),
    ):
        with pytest.raises(InvalidRequest, match="this model takes text alone") as raised:
            text_model.encode_prompt(prompt)
        assert reason_of(raised.value) == "MEDIA_UNUSABLE" and raised.value.fields[0][0] == path
    with pytest.raises(InvalidRequest, match="text alone"):
        text_model.render_chat(chat_prompt(user("x", IMAGE)).chat)


def test_a_prompt_that_media_makes_too_long_is_refused() -> None:
    up = bench()
    prompt = {"prompt": "<image>", "multi_modal_data": {"image": IMAGE}}
    assert len(up.encode(prompt, max_tokens=2).token_ids) == 2
    error = up.refused(prompt | {"prompt": "<image>!"}, max_tokens=2)
    assert (
        reason_of(error) == "TOO_LONG" and error.message == "the prompt has 3 tokens with its media; the model takes 2"
    )


def test_media_that_is_too_long_by_itself_is_refused_in_every_form_of_prompt() -> None:
    up = bench()
    media = {"multi_modal_data": {"image": [IMAGE, OTHER]}}
    ids = up.tokenizer.encode("<image><image>", add_special_tokens=False)
    for prompt, path in (
        ({"prompt": "<image><image>", **media}, "prompt.media[1]"),
        ({"prompt_token_ids": ids, **media}, "prompt.media[1]"),
        (user(IMAGE, OTHER), "chat.messages[0].content[1].media"),
    ):
        error = up.refused(prompt, max_tokens=3)
        assert reason_of(error) == "TOO_LONG" and error.fields[0][0] == path
        assert error.message == f"{path}: with it, media takes 4 tokens or more; the model takes 3"


def test_inputs_to_pool_are_held_to_the_context_unless_they_are_cut() -> None:
    up = bench(WRITES)
    prompt = to_prompt({"prompt": "A <image>", "multi_modal_data": {"image": IMAGE}})
    with pytest.raises(InvalidRequest, match="with it, media takes 2 tokens or more; the model takes 1"):
        up.preprocessor.pooling.encode(prompt, num_token_types=1, max_model_len=1)
    with pytest.raises(InvalidRequest, match="one with media cannot be cut to 1"):
        up.preprocessor.pooling.encode(prompt, num_token_types=1, max_tokens=1, max_model_len=1)


def test_a_prompt_with_media_is_not_cut() -> None:
    found = bench().encode({"prompt": "<image>", "multi_modal_data": {"image": IMAGE}})
    assert found.end(None) is found and found.end(2) is found
    with pytest.raises(InvalidRequest, match="one with media cannot be cut to 1") as raised:
        found.end(1)
    assert reason_of(raised.value) == "TOO_LONG"
    assert EncodedPrompt([1, 2, 3]).end(2).token_ids == [2, 3]


def test_an_item_that_cannot_be_is_named() -> None:
    up = bench()
    images = [picture_file("PNG"), picture_file("PNG")[:50]]
    error = up.refused({"prompt": "<image><image>", "multi_modal_data": {"image": images}})
    assert reason_of(error) == "MEDIA_DECODE" and error.fields[0][0] == "prompt.media[1]"
    assert error.message.startswith("prompt.media[1]: the PNG file is damaged")
    error = up.refused(user(IMAGE, "and", Image.new("RGB", (1_001, 2))))
    assert reason_of(error) == "MEDIA_UNUSABLE" and error.fields[0][0] == "chat.messages[0].content[2].media"


def test_fields_of_another_form_of_prompt_are_refused() -> None:
    up = bench()
    media = to_prompt({"prompt": "x", "multi_modal_data": {"image": IMAGE}}).media
    for prompt in (
        prompt_pb2.Prompt(chat=chat_prompt(user("x")).chat, media=media),
        prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=[1]), parse_special_tokens=True),
    ):
        with pytest.raises(InvalidRequest) as raised:
            up.preprocessor.encode_prompt(prompt)
        assert reason_of(raised.value) == "INVALID_FIELD"


def test_a_rendered_chat_shows_the_placeholders_and_gives_the_ids_of_generation() -> None:
    up = bench(WRITES)
    chat = user("Is <image> this?", IMAGE)
    text, ids = up.preprocessor.render_chat(chat_prompt(chat).chat)
    assert text == turn("Is <image> this?<image>")
    assert ids == up.encode(chat).token_ids


def test_a_folder_of_a_text_model_has_no_processor() -> None:
    assert Preprocessor.load(Path(__file__).parents[2] / "demo" / "model").modalities == ()


def test_inputs_to_pool_have_media_too() -> None:
    up = bench(WRITES)
    pooling = up.preprocessor.pooling
    found = pooling.encode(to_prompt({"prompt": "A <image>", "multi_modal_data": {"image": IMAGE}}), num_token_types=1)
    assert (
        up.tokenizer.decode(found.token_ids, skip_special_tokens=False) == "A <patch><patch>" and len(found.media) == 1
    )
    found = pooling.encode(chat_prompt(user("A", IMAGE)), num_token_types=1)  # nobody is going to answer
    assert (
        up.tokenizer.decode(found.token_ids, skip_special_tokens=False)
        == "<|im_start|>user\nA<patch><patch><|im_end|>\n"
    )
    ids = up.tokenizer.encode("<image>", add_special_tokens=False)
    found = pooling.encode(
        to_prompt({"prompt_token_ids": ids, "multi_modal_data": {"image": IMAGE}}), num_token_types=1
    )
    assert [placed.spans for placed in found.media] == [((0, 2),)]


def test_inputs_to_pool_with_media_are_not_cut_and_are_no_pairs() -> None:
    pooling = bench().preprocessor.pooling
    prompt = to_prompt({"prompt": "A <image>", "multi_modal_data": {"image": IMAGE}})
    with pytest.raises(InvalidRequest, match="cannot be cut to 2"):
        pooling.encode(prompt, num_token_types=1, max_tokens=2)
    with pytest.raises(InvalidRequest, match="plain text alone"):
        pooling.encode_pair(to_prompt("query"), prompt, num_token_types=1)


@pytest.mark.parametrize("counted", [True, False])
def test_named_prompts_stand_before_texts_with_media(counted: bool) -> None:
    up = bench()
    prompts = SentencePrompts({"query": "find: "}, counted=counted)
    pooling = PoolingEncoder(up.tokenizer, up.preprocessor.encode_prompt, prompts)
    prompt = to_prompt({"prompt": "<image>", "multi_modal_data": {"image": IMAGE}})
    if counted:
        found = pooling.encode(prompt, num_token_types=1, prompt_name="query")
        assert up.tokenizer.decode(found.token_ids, skip_special_tokens=False) == "find: <patch><patch>"
        assert prompt.text == "<image>"
    else:
        with pytest.raises(InvalidRequest, match="stand before plain texts alone"):
            pooling.encode(prompt, num_token_types=1, prompt_name="query")


@pytest.mark.parametrize("markers", [CONTROL, PLAIN], ids=["control", "plain"])
def test_what_a_prompt_costs_grows_with_its_length_alone(markers: dict[str, str]) -> None:
    """Counted in what is looked at, not in time: the text that the processor gets and what it makes of it."""
    lengths = []
    for count in (4, 8, 16):
        up = bench(CHATML, markers)
        parts = [
            part for index in range(count) for part in (Image.new("RGB", (4, 3), (index, 0, 0)), "<image> [picture]")
        ]
        found = up.encode(user(*parts))
        assert len(found.media) == count
        lengths.append((len(found.token_ids), len(up.processor.texts[0].text)))
    for first, second, third in zip(*lengths, strict=True):
        assert third - second == pytest.approx(2 * (second - first), rel=0.1)
