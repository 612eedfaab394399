"""Owns how what Python users write, texts, token ids, dictionaries, chat messages, becomes request messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from forebay.client_media import KINDS, media_of_base64, media_of_url, one_media, to_media
from forebay.errors import InvalidRequest
from forebay.sampling_params import SamplingParams
from forebay.v1 import generation_pb2, prompt_pb2

Messages = Sequence[Mapping[str, Any]]
# A text, token ids, `{"prompt": …}` or `{"prompt_token_ids": …}` as in vLLM, chat messages, or the message itself. Beside
# either key, `multi_modal_data` has media (see client_media.py) in the order of the placeholders that the prompt has for it. For
# encoder-decoders the prompt is the encoder's, and the dictionaries take `decoder_prompt_token_ids` too; to score and classify
# pairs, `token_type_ids` stands beside `prompt_token_ids`.
PromptInput = str | Sequence[int] | Mapping[str, Any] | Messages | prompt_pb2.Prompt

Request = TypeVar("Request", generation_pb2.GenerateRequest, generation_pb2.StreamGenerateRequest)

_KEYS_BESIDE = ("multi_modal_data", "parse_special_tokens", "decoder_prompt_token_ids", "token_type_ids")
_KEYS = {"prompt", "prompt_token_ids", *_KEYS_BESIDE}
# The types of content parts, each with what it is of.
_PART_TYPES = {"text": "text", "input_audio": "audio"} | {
    f"{modality}{suffix}": modality for modality in KINDS for suffix in ("", "_url", "_embeds")
}

_ROLES = {
    "system": prompt_pb2.CHAT_ROLE_SYSTEM,
    "user": prompt_pb2.CHAT_ROLE_USER,
    "assistant": prompt_pb2.CHAT_ROLE_ASSISTANT,
    "tool": prompt_pb2.CHAT_ROLE_TOOL,
}


def generation_request(
    kind: type[Request],
    prompt: prompt_pb2.Prompt,
    params: SamplingParams,
    *,
    model: str,
    priority: int,
    request_id: str,
) -> Request:
    """A request to generate; raises InvalidRequest for what its fields cannot hold."""
    sampling = params.to_proto()
    try:
        return kind(model=model, prompt=prompt, sampling=sampling, priority=priority, request_id=request_id)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"model, priority or request_id cannot be sent: {error}") from None


def to_prompts(
    prompts: PromptInput | Sequence[PromptInput], *, parse_special_tokens: bool = False
) -> list[prompt_pb2.Prompt]:
    """The messages of one prompt or many; raises InvalidRequest for what is none.

    With `parse_special_tokens`, names of special tokens in texts are those tokens, unless a dictionary says otherwise.
    """
    first = prompts[0] if isinstance(prompts, Sequence) and prompts else None
    one = isinstance(prompts, str | Mapping | prompt_pb2.Prompt) or isinstance(first, int) or _is_message(first)
    return [to_prompt(prompt, parse_special_tokens=parse_special_tokens) for prompt in ([prompts] if one else prompts)]


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value


def to_prompt(prompt: PromptInput, *, parse_special_tokens: bool = False) -> prompt_pb2.Prompt:
    """The message of one prompt; see to_prompts."""
    if isinstance(prompt, prompt_pb2.Prompt):
        return prompt
    if isinstance(prompt, str):
        return prompt_pb2.Prompt(text=_checked_text(prompt, "prompt"), parse_special_tokens=parse_special_tokens)
    if isinstance(prompt, Mapping):
        return _dictionary_prompt(prompt, parse_special_tokens)
    if isinstance(prompt, bytes) or not isinstance(prompt, Iterable):
        raise _wrong("prompt", f"is a {type(prompt).__name__}; it can be a text, token ids or a dictionary")
    if isinstance(prompt, Sequence) and prompt and _is_message(prompt[0]):
        return chat_prompt(prompt)
    return prompt_pb2.Prompt(token_ids=to_token_ids(prompt, "prompt"))


def _dictionary_prompt(prompt: Mapping[str, Any], parse_special_tokens: bool) -> prompt_pb2.Prompt:
    given = {key: value for key, value in prompt.items() if value is not None}
    media = to_media(given.get("multi_modal_data", {}), "multi_modal_data")
    if given.keys() - _KEYS or not given.keys() & {"prompt", "prompt_token_ids"}:
        found = ", ".join(map(str, prompt))
        raise _wrong(
            "prompt", f"has the keys {found}; it can have prompt or prompt_token_ids, and {', '.join(_KEYS_BESIDE)}"
        )
    if "prompt_token_ids" in given:
        message = prompt_pb2.Prompt(token_ids=to_token_ids(given["prompt_token_ids"], "prompt_token_ids"))
        if (type_ids := given.get("token_type_ids")) is not None:
            message.token_ids.type_ids.extend(to_token_ids(type_ids, "token_type_ids").ids)
    else:
        # Who gives media beside a text writes the model's placeholders into it.
        parse = given.get("parse_special_tokens", parse_special_tokens or bool(media))
        text = _checked_text(given["prompt"], "prompt")
        message = prompt_pb2.Prompt(text=text, parse_special_tokens=parse)
    if (decoder := given.get("decoder_prompt_token_ids")) is not None:
        message.decoder_token_ids.CopyFrom(to_token_ids(decoder, "decoder_prompt_token_ids"))
    message.media.extend(media)
    return message


def to_token_ids(token_ids: Iterable[int], field: str) -> prompt_pb2.TokenIds:
    """Token ids as a message; raises InvalidRequest naming the field."""
    try:
        return prompt_pb2.TokenIds(ids=token_ids)
    except (TypeError, ValueError) as error:
        raise _wrong(field, f"must be non-negative integers ({error})") from None


def chat_prompt(
    messages: Messages, *, add_generation_prompt: bool | None = None, continue_final_message: bool = False
) -> prompt_pb2.Prompt:
    """The prompt of a conversation: `{"role": "user", "content": "…"}` each, or content in parts: {"type": "text", "text": "…"},
    {"type": "image_url", "image_url": {"url": "data:…"}}, {"type": "image", "image": a picture of PIL}, and so on.

    The rendered prompt ends with the opening of the assistant's turn, unless add_generation_prompt is False or the last
    message, the assistant's, is to be continued. Raises InvalidRequest naming the message that is wrong.
    """
    chat = prompt_pb2.Chat(
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(messages)],
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message or None,
    )
    return prompt_pb2.Prompt(chat=chat)


def _message(message: Mapping[str, Any], field: str) -> prompt_pb2.ChatMessage:
    if not isinstance(message, Mapping):
        raise _wrong(field, f"is a {type(message).__name__}; a message is a dictionary with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    if unknown := given.keys() - {"role", "content", "name"}:
        raise _wrong(field, f"has the key {min(map(str, unknown))}; role, content and name are taken")
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{field}.role", f"is {repr(role)[:50]}; it can be {', '.join(_ROLES)}")
    content = given.get("content")
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise _wrong(f"{field}.content", "must be a text or a list of parts")
    content = [_part(part, f"{field}.content[{index}]") for index, part in enumerate(parts)]
    name = given.get("name")
    return prompt_pb2.ChatMessage(
        role=_ROLES[role],
        content=content,
        name=None if name is None else _checked_text(name, f"{field}.name"),
    )


def _part(part: Any, field: str) -> prompt_pb2.ContentPart:
    """A text, or media as OpenAI's API ("image_url", "input_audio") or vLLM ("image", "image_embeds") have it."""
    if not isinstance(part, Mapping):
        return prompt_pb2.ContentPart(text=_checked_text(part, field))
    kind = part.get("type")
    key = kind if isinstance(kind, str) and kind in _PART_TYPES else None
    if key is None or part.keys() != {"type", key}:
        known = f"there are {', '.join(_PART_TYPES)}, each with the key of its type"
        raise _wrong(field, f"is of type {repr(kind)[:50]} with the keys {', '.join(map(str, part))}; {known}")
    value, where, modality = part[key], f"{field}.{key}", _PART_TYPES[key]
    if kind == "text":
        return prompt_pb2.ContentPart(text=_checked_text(value, field))
    if kind.endswith("_url"):
        media = media_of_url(modality, value.get("url") if isinstance(value, Mapping) else value, where)
    elif kind == "input_audio":
        media = media_of_base64(modality, value.get("data") if isinstance(value, Mapping) else value, where)
    elif kind.endswith("_embeds"):
        media = one_media(modality, value if isinstance(value, Mapping) else {key: value}, where)
    else:
        media = one_media(modality, value, where)
    return prompt_pb2.ContentPart(media=media)


def _checked_text(text: Any, field: str) -> str:
    if not isinstance(text, str):
        raise _wrong(field, f"is a {type(text).__name__}; it must be a text")
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: bytes of another encoding that Python let through
        raise _wrong(field, "is not valid Unicode") from None
    return text


def _wrong(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {problem}", fields=((field, problem),))
