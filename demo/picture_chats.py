"""Owns what is asked and answered about the pictures of the image demo."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from pictures import Scene, Shape

DESCRIBE = ("What is in the picture?", "What do you see?", "Describe the picture.", "What does the picture show?")
NUMBERS = ("one", "two", "three")


class Turn(NamedTuple):
    """A question and its only right answer."""

    question: str
    answer: str


def describe(scene: Scene) -> str:
    """ "a red circle and a blue square": the shapes from left to right."""
    *before, last = [f"{_article(shape.colour)} {shape.colour} {shape.kind}" for shape in scene.shapes]
    return f"{', '.join(before)} and {last}" if before else last


def conversation(scene: Scene, rng: random.Random, num_turns: int) -> list[Turn]:
    """Questions of different kinds about a scene.

    What is in the picture is asked first or last: after it, all else could be answered without looking.
    """
    askers = rng.sample(_ASKERS, num_turns)
    if _ask_description in askers:
        askers.remove(_ask_description)
        askers.insert(rng.choice((0, num_turns)), _ask_description)
    return [asker(scene, rng) for asker in askers]


def _ask_description(scene: Scene, rng: random.Random) -> Turn:
    return Turn(rng.choice(DESCRIBE), describe(scene))


def _ask_number(scene: Scene, rng: random.Random) -> Turn:
    question = rng.choice(("How many shapes are there?", "How many shapes are in the picture?"))
    return Turn(question, NUMBERS[len(scene.shapes) - 1])


def _ask_colour(scene: Scene, rng: random.Random) -> Turn:
    shape = _only(scene, rng, lambda shape: shape.kind)
    if shape is None:
        return _ask_edge(scene, rng)
    colour = rng.choice(("colour", "color"))
    return Turn(f"What {colour} is the {shape.kind}?", shape.colour)


def _ask_kind(scene: Scene, rng: random.Random) -> Turn:
    shape = _only(scene, rng, lambda shape: shape.colour)
    if shape is None:
        return _ask_edge(scene, rng)
    return Turn(rng.choice(("Which shape is {}?", "What is {}?")).format(shape.colour), f"the {shape.kind}")


def _ask_edge(scene: Scene, rng: random.Random) -> Turn:
    side, index = rng.choice((("left", 0), ("right", -1)))
    shape = scene.shapes[index]
    return Turn(f"What is on the {side}?", f"{_article(shape.colour)} {shape.colour} {shape.kind}")


_ASKERS = (_ask_description, _ask_number, _ask_colour, _ask_kind, _ask_edge)


def _only(scene: Scene, rng: random.Random, key: Callable[[Shape], str]) -> Shape | None:
    """A shape that alone has what `key` gives, if there is one."""
    keys = [key(shape) for shape in scene.shapes]
    alone = [shape for shape in scene.shapes if keys.count(key(shape)) == 1]
    return rng.choice(alone) if alone else None


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
