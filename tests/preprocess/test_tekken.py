"""Mistral's tekken.json becomes a tokenizer whose control tokens come first, with the prompt format of its version."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import CheckpointError, FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2
from preprocess.preprocessor import Preprocessor
from preprocess.tokenizer_files import load_tokenizer

PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENS = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" hello", b"unused"]
NUM_CONTROLS = 22


def tekken(**changes: Any) -> dict[str, Any]:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(TOKENS)
    ]
    config = {
        "pattern": PATTERN, "num_vocab_tokens": len(TOKENS), "default_vocab_size": NUM_CONTROLS + len(TOKENS) - 1,
        "default_num_special_tokens": NUM_CONTROLS, "version": "v3",
    }  # fmt: skip
    return {"config": config | changes.pop("config", {}), "vocab": vocab, **changes}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "tekken.json").write_text(json.dumps(tekken(**changes)))
    return folder


def chat(*turns: tuple[str, str]) -> prompt_pb2.Chat:
    roles = {
        "system": prompt_pb2.CHAT_ROLE_SYSTEM,
        "user": prompt_pb2.CHAT_ROLE_USER,
        "assistant": prompt_pb2.CHAT_ROLE_ASSISTANT,
    }
    messages = [
        prompt_pb2.ChatMessage(role=roles[role], content=[prompt_pb2.ContentPart(text=text)]) for role, text in turns
    ]
    return prompt_pb2.Chat(messages=messages)


def test_ids_are_ranks_behind_the_control_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenizer is not None
    assert tokenizer.vocab_size == NUM_CONTROLS + len(TOKENS) - 1
    ids = tokenizer.encode("hello hello[INST]é", add_special_tokens=True)
    words = [NUM_CONTROLS + TOKENS.index(token) for token in (b"hello", b" hello")]
    assert ids == [1, *words, 3, *(NUM_CONTROLS + byte for byte in "é".encode())]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello helloé"
    assert tokenizer.tokens([10, 20, 21]) == ["[IMG]", "<SPECIAL_20>", "<SPECIAL_21>"]
    plain = tokenizer.encode_user_text("[INST]<s>", add_special_tokens=False)
    assert plain == [NUM_CONTROLS + byte for byte in b"[INST]<s>"]


def test_a_file_may_list_its_control_tokens(tmp_path: Path) -> None:
    listed = [{"rank": 0, "token_str": "<unk>"}, {"rank": 1, "token_str": "<s>"}, {"rank": 3, "token_str": "[X]"}]
    tokenizer = load_tokenizer(write(tmp_path, special_tokens=listed))
    assert tokenizer is not None
    assert tokenizer.tokens(range(4)) == ["<unk>", "<s>", "<SPECIAL_2>", "[X]"]


def test_the_system_message_goes_into_the_last_turn_of_the_user(tmp_path: Path) -> None:
    preprocessor = Preprocessor.load(write(tmp_path))
    text, ids = preprocessor.render_chat(
        chat(("system", "Be brief."), ("user", "hi[/INST]"), ("assistant", "yes"), ("user", "hello"))
    )
    assert text == "<s>[INST]hi[/INST][/INST]yes</s>[INST]Be brief.\n\nhello[/INST]"
    assert [token_id for token_id in ids if token_id < NUM_CONTROLS] == [1, 3, 4, 2, 3, 4]
    assert preprocessor.eos_token_ids == (2,)


def test_the_system_message_has_a_place_of_its_own_from_version_7_on(tmp_path: Path) -> None:
    preprocessor = Preprocessor.load(write(tmp_path, config={"version": "v7"}))
    text, ids = preprocessor.render_chat(chat(("system", "Be brief."), ("user", "hi")))
    assert text == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]hi[/INST]"
    assert [token_id for token_id in ids if token_id < NUM_CONTROLS] == [1, 17, 18, 3, 4]


def test_turns_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises((FailedPrecondition, InvalidRequest), match="take turns"):
        Preprocessor.load(write(tmp_path)).render_chat(chat(("user", "a"), ("user", "b")))


def test_a_version_whose_format_is_not_known_has_no_template(tmp_path: Path) -> None:
    assert not Preprocessor.load(write(tmp_path, config={"version": "v99"})).has_chat_template
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert Preprocessor.load(tmp_path).has_chat_template


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"config": {"default_vocab_size": 9999}}, "tekken.json has 262 of the 9,977 tokens"),
        ({"config": {"default_num_special_tokens": 0}}, "default_num_special_tokens of tekken.json is 0"),
        ({"config": {"pattern": None}}, "no config with a pattern"),
        ({"special_tokens": [{"rank": 0}]}, "special_tokens of tekken.json cannot be read"),
        ({"special_tokens": [{"rank": 1, "token_str": "A"}]}, "not all different, or have no <s>"),
        ({"special_tokens": [{"rank": 0, "token_str": "he"}, {"rank": 1, "token_str": "<s>"}]}, "he is the name"),
    ],
)
def test_files_that_contradict_themselves_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        load_tokenizer(write(tmp_path, **changes))
