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
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.meta

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.v1 import prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.template_renderer import TemplateRenderer, TemplateSyntaxError, TemplateTooCostly
from preprocess.tokenizer import TextTokenizer

ROLES = {
    prompt_pb2.CHAT_ROLE_SYSTEM: "system",
    prompt_pb2.CHAT_ROLE_USER: "user",
    prompt_pb2.CHAT_ROLE_ASSISTANT: "assistant",
    prompt_pb2.CHAT_ROLE_TOOL: "tool",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PRIVATE_USE = range(0xF0000, 0xFFFFE)

Message = dict[str, Any]


class ChatTemplate:
    """A checkpoint's chat template together with its tokenizer."""

    def __init__(self, template: str, tokenizer: TextTokenizer, renderer: TemplateRenderer) -> None:
        """Tries the template once: TemplateTooCostly refuses the checkpoint, TemplateSyntaxError only its template."""
        self._template = template
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._edges = {name[0] for name in tokenizer.control_texts} | {name[-1] for name in tokenizer.control_texts}
        self._longest_control = max(map(len, tokenizer.control_texts), default=0)
        try:
            self._render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
        except (TemplateTooCostly, TemplateSyntaxError):
            raise
        except FailedPrecondition:
            pass  # it wants other messages than these, which is its right
        self._takes_parts, self._tests_for_string = _content_forms(template)

    def render(self, chat: prompt_pb2.Chat) -> tuple[str, list[int]]:
        """The rendered text and its ids. Raises InvalidRequest for bad messages, FailedPrecondition (CHAT_TEMPLATE)."""
        messages = [self._message(message, f"chat.messages[{i}]") for i, message in enumerate(chat.messages)]
        continues = chat.continue_final_message
        _check(bool(messages), "chat.messages", "is empty; a conversation has at least one message")
        if continues:
            _check(
                messages[-1]["role"] == "assistant",
                "chat.continue_final_message",
                "needs a last message by the assistant",
            )
            _check(not chat.add_generation_prompt, "chat.add_generation_prompt", "excludes continue_final_message")
        opens_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues

        def render(changed: list[Message]) -> str:
            return self._render(changed, add_generation_prompt=opens_turn, continue_final_message=continues)

        return self._encode(messages, render)

    def _encode(self, messages: list[Message], render: Callable[[list[Message]], str]) -> tuple[str, list[int]]:
        plain = render(messages)
        strings = list(_strings(messages))
        if not any(map(self._may_form_control, strings)):
            return plain, self._tokenizer.encode(plain, add_special_tokens=False)
        marks = _Marks("".join(strings) + self._template)
        neutral = render(_mapped(messages, lambda text: self._neutral(text, marks)))
        controls = self._tokenizer.control_names(neutral)
        if self._tokenizer.control_names(plain) == controls:
            return plain, self._tokenizer.encode(plain, add_special_tokens=False)
        marked = render(_mapped(messages, lambda text: self._marked(text, marks)))
        chosen = marked if self._tokenizer.control_names(marked) == controls else neutral
        return marks.undo(chosen), self._tokenizer.encode_disguised(marks.undo(self._tokenizer.disguise(chosen)))

    def _may_form_control(self, text: str) -> bool:
        """Whether a control token in the rendered text could have a part of this string in it."""
        if not self._edges.isdisjoint(text) or not self._edges.isdisjoint(self._tokenizer.normalized(text)):
            return True
        core = text.strip()  # the middle of a name, between a template's "<|" and "|>"
        return 0 < len(core) < self._longest_control and any(core in name for name in self._tokenizer.control_texts)

    def _neutral(self, text: str, marks: _Marks) -> str:
        normalized = self._tokenizer.normalized
        risky = {c for c in set(text) if c in self._edges or not self._edges.isdisjoint(normalized(c))}
        text = text.translate({ord(c): marks.of(c) for c in risky})
        core = text.strip()
        if not core:
            return text
        start = text.index(core)  # inside the white space, so that a template's trim still works
        return f"{text[:start]}{marks.barrier}{core}{marks.barrier}{text[start + len(core) :]}"

    def _marked(self, text: str, marks: _Marks) -> str:
        parts, end = [], 0
        for start, stop in self._tokenizer.control_spans(text):
            parts += [text[end:start], marks.of(text[start:stop])]
            end = stop
        return "".join([*parts, text[end:]])

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

    def _message(self, message: prompt_pb2.ChatMessage, path: str) -> Message:
        role = ROLES.get(message.role)
        _check(role is not None, f"{path}.role", f"is {message.role}, which is not a role")
        _check(len(message.content) > 0, f"{path}.content", "is empty; a message has at least one part")
        for i, part in enumerate(message.content):
            _check(part.WhichOneof("kind") == "text", f"{path}.content[{i}]", "has no text")
        texts = [part.text for part in message.content]
        as_parts = self._takes_parts and (len(texts) > 1 or not self._tests_for_string)
        content = [{"type": "text", "text": text} for text in texts] if as_parts else "\n".join(texts)
        result: Message = {"role": role, "content": content}
        if message.HasField("name"):
            valid = _NAME.fullmatch(message.name) is not None
            _check(valid, f"{path}.name", "must be 1 to 64 letters, digits, '_' or '-'")
            result["name"] = message.name
        return result


class _Marks:
    """Private-use characters that stand for pieces of user text, none of which the text has itself."""

    def __init__(self, text: str) -> None:
        taken = set(text)
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._of: dict[str, str] = {}
        self.barrier = self._next()

    def of(self, piece: str) -> str:
        """The character that stands for the piece."""
        if piece not in self._of:
            self._of[piece] = self._next()
        return self._of[piece]

    def undo(self, text: str) -> str:
        """The text with every piece in its place, and without barriers."""
        return text.translate({ord(mark): piece for piece, mark in self._of.items()} | {ord(self.barrier): None})

    def _next(self) -> str:
        mark = next(self._free, None)
        if mark is None:
            raise InvalidRequest("the messages use up all private-use characters")
        return mark


def _strings(messages: list[Message]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content)
        if "name" in message:
            yield message["name"]


def _mapped(messages: list[Message], change: Callable[[str], str]) -> list[Message]:
    """The messages with each user string changed."""
    result = []
    for message in messages:
        content = message["content"]
        is_text = isinstance(content, str)
        content = change(content) if is_text else [part | {"text": change(part["text"])} for part in content]
        named = {"name": change(message["name"])} if "name" in message else {}
        result.append(message | {"content": content} | named)
    return result


def _content_forms(template: str) -> tuple[bool, bool]:
    """Whether the template walks over a message's content as parts, and whether it tests for a string first."""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", template))
    except jinja2.TemplateSyntaxError:  # a tag that only transformers knows
        return False, True
    loops = any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))
    tests = any(test.name == "string" and _is_content(test.node) for test in tree.find_all(jinja2.nodes.Test))
    return loops, tests


_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def _is_content(node: jinja2.nodes.Node) -> bool:
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return isinstance(node, jinja2.nodes.Name) and node.name == "content"


def _check(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise InvalidRequest(f"{field} {problem}", ErrorReason.ERROR_REASON_INVALID_FIELD, fields=((field, problem),))
