"""Owns how a conversation becomes a prompt: the checkpoint's chat template, in which user text stays plain text.

A template may trim, split, test or change what it is given, so user strings cannot simply be swapped for marks.
Usually they need not be: text without a character that begins or ends a control token cannot bring one in.
Otherwise the template also runs on *neutral* messages, in which those characters are private-use ones and barriers
stand at the ends. If both renderings hold the same control tokens, all of these are the template's, and the plain
rendering stands as it is. If not:

    1. *marked* messages: only the names of control tokens in user strings are replaced, each by one private-use
       character, so that the template sees all the rest; taken if its control tokens are those of the neutral one,
    2. else the neutral rendering itself.

Then the control tokens that are left are the template's: they are disguised (see preprocess/tokenizer.py), the
private-use characters turn back into the user's text, and the whole is encoded as one text.

Markers of media are protected in the same way, those made of plain text like those that are control tokens: what users
spell is never a marker. Where a template does not write the markers itself, a private-use character stands in a
message for each until the template has run.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2
from preprocess.chat_messages import ChatMedia, MessageWriter, check, media_parts
from preprocess.media.messages import modality_of
from preprocess.processors.processor import PromptText
from preprocess.template_forms import Message, TemplateForms
from preprocess.template_renderer import TemplateRenderer, TemplateSyntaxError, TemplateTooCostly
from preprocess.tokenizer import TextTokenizer

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as its template wrote it: for people to read, and on its way to ids."""

    text: str
    prompt: PromptText


class ChatTemplate:
    """A checkpoint's chat template together with its tokenizer."""

    def __init__(self, template: str, tokenizer: TextTokenizer, renderer: TemplateRenderer) -> None:
        """Tries the template once: TemplateTooCostly refuses the checkpoint, TemplateSyntaxError only its template."""
        self._template = template
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._names = _Names(tokenizer)
        try:
            self._render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
        except (TemplateTooCostly, TemplateSyntaxError):
            raise
        except FailedPrecondition:
            pass  # it wants other messages than these, which is its right
        self._forms = TemplateForms(template, lambda messages: self._render(messages, add_generation_prompt=True))

    def render(self, chat: prompt_pb2.Chat) -> tuple[str, list[int]]:
        """The rendered text of a conversation without media, and its ids; raises as `prompt`."""
        rendered = self.prompt(chat)
        return rendered.text, rendered.prompt.encode(rendered.prompt.text)

    def prompt(self, chat: prompt_pb2.Chat, media: ChatMedia | None = None) -> RenderedChat:
        """The rendered conversation; `media` says what stands for its media.

        Raises InvalidRequest for bad messages, FailedPrecondition (CHAT_TEMPLATE) where the template refuses them.
        """
        marks = _Marks("".join(_user_strings(chat)) + self._template)
        messages = MessageWriter(self._forms, media, marks.of_marker).messages(chat)
        continues = chat.continue_final_message
        check(bool(messages), "chat.messages", "is empty; a conversation has at least one message")
        if continues:
            check(
                messages[-1]["role"] == "assistant",
                "chat.continue_final_message",
                "needs a last message by the assistant",
            )
            check(not chat.add_generation_prompt, "chat.add_generation_prompt", "excludes continue_final_message")
        opens_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues

        def render(changed: list[Message]) -> str:
            return self._render(changed, add_generation_prompt=opens_turn, continue_final_message=continues)

        names = self._names if media is None else _Names(self._tokenizer, _markers(media, chat))
        return self._protected(messages, render, names, marks)

    def _protected(
        self, messages: list[Message], render: Callable[[list[Message]], str], names: _Names, marks: _Marks
    ) -> RenderedChat:
        plain = render(messages)
        if not any(map(names.may_be_in, _strings(messages))):
            return self._as_it_is(marks.with_markers(plain))
        neutral = render(_mapped(messages, lambda text: names.neutral(text, marks)))
        controls = names.found_in(neutral)
        if names.found_in(plain) == controls:
            return self._as_it_is(marks.with_markers(plain))
        marked = render(_mapped(messages, lambda text: names.marked(text, marks)))
        chosen = marks.with_markers(marked if names.found_in(marked) == controls else neutral)
        tokenizer = self._tokenizer
        prompt = PromptText(
            tokenizer.disguise(chosen),
            encode=lambda text, special: tokenizer.encode_disguised(marks.undo(text), add_special_tokens=special),
            write=tokenizer.disguise,
            adds_special_tokens=False,
        )
        return RenderedChat(marks.undo(chosen), prompt)

    def _as_it_is(self, text: str) -> RenderedChat:
        """Where all names in the text are the template's."""

        def encode(text: str, special: bool) -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=special)

        return RenderedChat(text, PromptText(text, encode=encode, adds_special_tokens=False))

    def _render(
        self, messages: list[Message], *, add_generation_prompt: bool, continue_final_message: bool = False
    ) -> str:
        return self._renderer.render(
            self._template,
            messages,
            named_tokens=self._tokenizer.named_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )


class _Names:
    """The names that users must not bring into a prompt: those of control tokens, and markers made of plain text."""

    def __init__(self, tokenizer: TextTokenizer, markers: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        plain = [marker for marker in markers if not tokenizer.control_names(marker)]
        self._texts = (*tokenizer.control_texts, *plain)
        self._edges = {name[0] for name in self._texts} | {name[-1] for name in self._texts}
        self._longest = max(map(len, self._texts), default=0)
        self._markers = re.compile("|".join(map(re.escape, sorted(plain, key=len, reverse=True))) or r"(?!)")

    def may_be_in(self, text: str) -> bool:
        """Whether a name in the rendered text could have a part of this string in it."""
        if not self._edges.isdisjoint(text) or not self._edges.isdisjoint(self._tokenizer.normalized(text)):
            return True
        core = text.strip()  # the middle of a name, between a template's "<|" and "|>"
        return 0 < len(core) < self._longest and any(core in name for name in self._texts)

    def found_in(self, text: str) -> list[str]:
        """The names in a text, in the order in which each kind of them stands there."""
        return self._tokenizer.control_names(text) + self._markers.findall(text)

    def neutral(self, text: str, marks: _Marks) -> str:
        """The string without a character that begins or ends a name."""
        normalized = self._tokenizer.normalized
        risky = {c for c in set(text) if c in self._edges or not self._edges.isdisjoint(normalized(c))}
        text = text.translate({ord(c): marks.of(c) for c in risky})
        core = text.strip()
        if not core:
            return text
        start = text.index(core)  # inside the white space, so that a template's trim still works
        return f"{text[:start]}{marks.barrier}{core}{marks.barrier}{text[start + len(core) :]}"

    def marked(self, text: str, marks: _Marks) -> str:
        """The string with a mark in place of each name."""
        spans = self._tokenizer.control_spans(text) + [match.span() for match in self._markers.finditer(text)]
        parts, end = [], 0
        for start, stop in sorted(spans):
            if start >= end:
                parts += [text[end:start], marks.of(text[start:stop])]
                end = stop
        return "".join([*parts, text[end:]])


class _Marks:
    """Private-use characters that stand for pieces of user text or for markers; the text has none of them itself."""

    def __init__(self, text: str) -> None:
        taken = {c for c in set(text) if ord(c) in _PRIVATE_USE}
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._of: dict[str, str] = {}
        self._of_marker: dict[str, str] = {}
        self.barrier = self._next()

    def of(self, piece: str) -> str:
        """The character that stands for a piece of user text."""
        if piece not in self._of:
            self._of[piece] = self._next()
        return self._of[piece]

    def of_marker(self, marker: str) -> str:
        """The character that stands for a marker of media, which is no user's."""
        if marker not in self._of_marker:
            self._of_marker[marker] = self._next()
        return self._of_marker[marker]

    def with_markers(self, text: str) -> str:
        """The text with every marker in its place."""
        return text.translate({ord(mark): marker for marker, mark in self._of_marker.items()})

    def undo(self, text: str) -> str:
        """The text with every piece of user text in its place, and without barriers."""
        return text.translate({ord(mark): piece for piece, mark in self._of.items()} | {ord(self.barrier): None})

    def _next(self) -> str:
        mark = next(self._free, None)
        if mark is None:
            raise InvalidRequest("the messages use up all private-use characters")
        return mark


def _markers(media: ChatMedia, chat: prompt_pb2.Chat) -> list[str]:
    """The markers of all modalities that the model takes, one more of each than the chat has items."""
    counts: Counter[str] = Counter()
    for (_, message), count in zip(media_parts(chat), media.counts, strict=True):
        counts[modality_of(message)] += count
    return [
        marker
        for modality in media.modalities
        for index in range(counts[modality] + 1)
        if (marker := media.marker(modality, index).strip())
    ]


def _user_strings(chat: prompt_pb2.Chat) -> Iterator[str]:
    for message in chat.messages:
        yield message.name
        yield from (part.text for part in message.content)


def _strings(messages: list[Message]) -> Iterator[str]:
    """The user's strings, as the template gets them."""
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content if "text" in part)
        if "name" in message:
            yield message["name"]


def _mapped(messages: list[Message], change: Callable[[str], str]) -> list[Message]:
    """The messages with each user string changed."""

    def changed(part: Message) -> Message:
        return part | {"text": change(part["text"])} if "text" in part else part

    result = []
    for message in messages:
        content = message["content"]
        content = change(content) if isinstance(content, str) else [changed(part) for part in content]
        named = {"name": change(message["name"])} if "name" in message else {}
        result.append(message | {"content": content} | named)
    return result
