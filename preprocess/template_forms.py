"""Owns which forms of a message's content a chat template takes: a string, parts, and parts that are media."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta

from forebay.errors import FailedPrecondition

_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

Message = dict[str, Any]


class TemplateForms:
    """What one template takes. `render` runs it on messages, and raises FailedPrecondition where it refuses them."""

    def __init__(self, template: str, render: Callable[[list[Message]], str]) -> None:
        self.takes_parts, self.tests_for_string = _content_forms(template)
        self._render = render
        self._media_parts: dict[str, Message | None] = {}  # threads that find the same at once do no harm

    def media_part(self, modality: str) -> Message | None:
        """The part for which the template writes a marker of its own; None if it writes none for this modality."""
        if modality not in self._media_parts:
            # Some templates look for the key that the content would have, and not at the type.
            forms = ({"type": modality}, {"type": modality, modality: "", f"{modality}_url": ""})
            found = (part for part in forms if self.takes_parts and self._adds_text(part))
            self._media_parts[modality] = next(found, None)
        return self._media_parts[modality]

    def _adds_text(self, part: Message) -> bool:
        text = {"type": "text", "text": "Hello"}
        try:
            without = self._render([{"role": "user", "content": [text]}])
            return self._render([{"role": "user", "content": [part, text]}]) != without
        except FailedPrecondition:
            return False


def _content_forms(template: str) -> tuple[bool, bool]:
    """Whether the template walks over a message's content as parts, and whether it tests for a string first."""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", template))
    except jinja2.TemplateSyntaxError:  # a tag that only transformers knows
        return False, True
    loops = any(_is_content(_unfiltered(loop.iter)) for loop in tree.find_all(jinja2.nodes.For))
    tests = any(test.name == "string" and _is_content(test.node) for test in tree.find_all(jinja2.nodes.Test))
    return loops, tests


def _unfiltered(node: jinja2.nodes.Node) -> jinja2.nodes.Node:
    """What filters such as selectattr are applied to."""
    while isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        node = node.node
    return node


def _is_content(node: jinja2.nodes.Node) -> bool:
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return isinstance(node, jinja2.nodes.Name) and node.name == "content"
