"""Owns how the messages of a request become those that a chat template takes, with something in the place of each item."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2, prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.messages import modality_of
from preprocess.template_forms import Message, TemplateForms

ROLES = {
    prompt_pb2.CHAT_ROLE_SYSTEM: "system",
    prompt_pb2.CHAT_ROLE_USER: "user",
    prompt_pb2.CHAT_ROLE_ASSISTANT: "assistant",
    prompt_pb2.CHAT_ROLE_TOOL: "tool",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclasses.dataclass(frozen=True, slots=True)
class ChatMedia:
    """What a chat's media is for its text. `modalities` and `marker` are the processor's, the latter its chat_marker."""

    modalities: Sequence[str]
    counts: Sequence[int]  # how many items each media part holds, in the order of the parts
    marker: Callable[[str, int], str]


def media_parts(chat: prompt_pb2.Chat) -> Iterator[tuple[str, media_pb2.Media]]:
    """The media of a chat in order, each with the path of its field."""
    for i, message in enumerate(chat.messages):
        for j, part in enumerate(message.content):
            if part.WhichOneof("kind") == "media":
                yield f"chat.messages[{i}].content[{j}].media", part.media


class MessageWriter:
    """Writes a chat's messages for one template."""

    def __init__(self, forms: TemplateForms, media: ChatMedia | None, mark: Callable[[str], str]) -> None:
        """`mark` gives a character that stands for a marker until the template has run."""
        self._forms, self._media, self._mark = forms, media, mark
        self._counts = iter(media.counts if media else ())
        self._placed: Counter[str] = Counter()

    def messages(self, chat: prompt_pb2.Chat) -> list[Message]:
        """One for each message, in the form that the template takes; raises InvalidRequest naming what is wrong."""
        return [self._message(message, f"chat.messages[{i}]") for i, message in enumerate(chat.messages)]

    def _message(self, message: prompt_pb2.ChatMessage, path: str) -> Message:
        role = ROLES.get(message.role)
        check(role is not None, f"{path}.role", f"is {message.role}, which is not a role")
        check(len(message.content) > 0, f"{path}.content", "is empty; a message has at least one part")
        parts: list[Message] = []
        for i, part in enumerate(message.content):
            parts += self._parts(part, f"{path}.content[{i}]")
        result: Message = {"role": role, "content": self._content(parts)}
        if message.HasField("name"):
            valid = _NAME.fullmatch(message.name) is not None
            check(valid, f"{path}.name", "must be 1 to 64 letters, digits, '_' or '-'")
            result["name"] = message.name
        return result

    def _parts(self, part: prompt_pb2.ContentPart, path: str) -> Iterator[Message]:
        kind = part.WhichOneof("kind")
        check(kind is not None, path, "has neither text nor media")
        if kind == "text":
            yield {"type": "text", "text": part.text}
            return
        check(self._media is not None, f"{path}.media", "is media, which this model does not take")
        modality = modality_of(part.media)
        for _ in range(next(self._counts)):
            if (written := self._forms.media_part(modality)) is not None:
                yield written
            else:
                marker = self._media.marker(modality, self._placed[modality])
                stem = marker.rstrip("\n")  # between a marker and what follows is one line break, whoever wrote it
                if stem:  # else the item has its place whatever the text says
                    yield {"type": "marker", "text": self._mark(stem)}
            self._placed[modality] += 1

    def _content(self, parts: list[Message]) -> str | list[Message]:
        kinds = {part["type"] for part in parts}
        if kinds == {"text"}:
            as_parts = self._forms.takes_parts and (len(parts) > 1 or not self._forms.tests_for_string)
            return parts if as_parts else "\n".join(part["text"] for part in parts)
        if kinds <= {"text", "marker"}:
            text = "\n".join(part["text"] for part in parts)
            return [{"type": "text", "text": text}] if self._needs_parts else text
        return [{"type": "text", "text": part["text"] + "\n"} if part["type"] == "marker" else part for part in parts]

    @property
    def _needs_parts(self) -> bool:
        return self._forms.takes_parts and not self._forms.tests_for_string


def check(holds: bool, field: str, problem: str) -> None:
    """Raises InvalidRequest about the field unless this holds."""
    if not holds:
        raise InvalidRequest(f"{field} {problem}", ErrorReason.ERROR_REASON_INVALID_FIELD, fields=((field, problem),))
