"""Owns the pictures of the image demo: scenes of coloured shapes, drawn by Pillow, and which of them training never sees."""

from __future__ import annotations

import argparse
import colorsys
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "star")
# Hue in degrees, saturation and value of a colour, each with how far a shape's own may be off.
COLOURS = {
    "red": ((357, 7), (0.90, 0.10), (0.82, 0.12)),
    "orange": ((28, 5), (0.93, 0.07), (0.96, 0.04)),
    "yellow": ((55, 4), (0.88, 0.12), (0.95, 0.05)),
    "green": ((125, 18), (0.80, 0.20), (0.62, 0.15)),
    "blue": ((222, 12), (0.85, 0.15), (0.78, 0.17)),
    "purple": ((282, 10), (0.75, 0.17), (0.64, 0.14)),
    "white": ((0, 180), (0.02, 0.02), (0.98, 0.02)),
    "black": ((0, 180), (0.20, 0.20), (0.06, 0.05)),
}
# Two things that no training picture has together, so that what is said of them was put together from parts.
NEVER_TOGETHER = (("red", "circle"), ("blue", "square"))

MOST_SHAPES = 3
LEAST_CONTRAST = 100.0  # distance in RGB between a shape and what is around it
LEAST_STEP = 0.13  # between the middles of shapes from left to right, as they are told in this order
SUPERSAMPLING = 3

Place = tuple[float, float, float]  # x, y and radius of a shape


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; lengths are in sides of the picture, and `radius` is that of the circle around it."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float
    turned: float  # degrees
    rgb: tuple[int, int, int]

    @property
    def name(self) -> tuple[str, str]:
        return self.colour, self.kind

    def outline(self, side: int) -> list[tuple[float, float]]:
        """The corners, in pixels; none of a circle."""
        if self.kind == "circle":
            return []
        if self.kind == "star":
            points = [(36 * i, 1.0 if i % 2 == 0 else 0.45) for i in range(10)]
        elif self.kind == "square":
            points = [(45 + 90 * i, 1.0) for i in range(4)]
        else:
            points = [(120 * i, 1.0) for i in range(3)]
        corners = []
        for angle, share in points:
            radians = math.radians(angle + self.turned - 90)
            corners.append(
                (
                    side * (self.x + share * self.radius * math.cos(radians)),
                    side * (self.y + share * self.radius * math.sin(radians)),
                )
            )
        return corners


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes from left to right, on a ground between two colours."""

    shapes: tuple[Shape, ...]
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]
    slope: float  # radians: where the second colour of the ground lies
    noise: float  # standard deviation of each pixel's channels, of 255
    noise_seed: int

    @property
    def is_held_out(self) -> bool:
        return {shape.name for shape in self.shapes}.issuperset(NEVER_TOGETHER)

    def draw(self, side: int) -> Image.Image:
        """The scene as a square picture of `side` pixels."""
        fine = side * SUPERSAMPLING
        image = Image.fromarray(self._ground(side)).resize((fine, fine), Image.Resampling.BILINEAR)
        canvas = ImageDraw.Draw(image)
        for shape in self.shapes:
            if corners := shape.outline(fine):
                canvas.polygon(corners, fill=shape.rgb)
            else:
                box = [fine * (middle + sign * shape.radius) for sign in (-1, 1) for middle in (shape.x, shape.y)]
                canvas.ellipse(box, fill=shape.rgb)
        pixels = np.asarray(image.reduce(SUPERSAMPLING), np.float32)
        if self.noise:
            pixels = pixels + np.random.default_rng(self.noise_seed).normal(0, self.noise, pixels.shape)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def _ground(self, side: int) -> np.ndarray:
        """(side, side, 3) uint8: from one colour to the other along the slope."""
        across = np.linspace(-1, 1, side, dtype=np.float32)
        share = (across * math.cos(self.slope) + across[:, None] * math.sin(self.slope)) / 2.83 + 0.5
        first, second = (np.array(colour, np.float32) for colour in self.ground)
        return (first + share[:, :, None] * (second - first)).astype(np.uint8)


def training_scenes(seed: object) -> Iterator[Scene]:
    """Scenes without end, a function of the seed; none is held out."""
    rng = random.Random(f"training {seed}")
    while True:
        scene = make_scene(rng, rng.choice((1, 2, 2, 3, 3)))
        if not scene.is_held_out:
            yield scene


def crowded_scenes(seed: object) -> Iterator[Scene]:
    """Scenes without end of as many shapes as there was room for, up to nine: more to learn from in each picture."""
    rng = random.Random(f"crowded {seed}")
    while True:
        places: list[Place] = []
        for _ in range(60):
            place = _place(rng, 0.11, 0.24)
            if len(places) < 9 and all(_gap(place, other) >= 0.02 for other in places):
                places.append(place)
        scene = _scene(rng, places)
        if scene is not None and not scene.is_held_out:
            yield scene


def unseen_scenes(seed: object, *names: tuple[str, str]) -> Iterator[Scene]:
    """Scenes without end that training does not draw, of the (colour, kind) in `names` from left to right, or of any."""
    rng = random.Random(f"unseen {seed}")
    while True:
        yield make_scene(rng, len(names) or rng.choice((1, 2, 3)), names)


def make_scene(rng: random.Random, num_shapes: int, names: tuple[tuple[str, str], ...] = ()) -> Scene:
    """A scene of shapes that do not touch, each of which stands out from the ground."""
    smallest, largest = ((0.16, 0.36), (0.15, 0.26), (0.14, 0.20))[num_shapes - 1]
    while True:
        places = sorted(_place(rng, smallest, largest) for _ in range(num_shapes))
        if _apart(places) and (scene := _scene(rng, places, names)) is not None:
            return scene


def _place(rng: random.Random, smallest: float, largest: float) -> Place:
    radius = rng.uniform(smallest, largest)
    x, y = (radius + 0.01 + rng.random() * (0.98 - 2 * radius) for _ in range(2))
    return x, y, radius


def _gap(first: Place, second: Place) -> float:
    return math.dist(first[:2], second[:2]) - first[2] - second[2]


def _apart(places: list[Place]) -> bool:
    """Whether shapes from left to right can be told apart, and so can their order."""
    return all(
        second[0] - first[0] >= LEAST_STEP and _gap(first, second) >= 0.02
        for i, second in enumerate(places)
        for first in places[:i]
    )


def _scene(rng: random.Random, places: list[Place], names: tuple[tuple[str, str], ...] = ()) -> Scene | None:
    """Shapes at these places, of these names or of any; None where one does not stand out from the ground."""
    ground = _ground_colours(rng)
    shapes = []
    for colour, kind in names or [(rng.choice(list(COLOURS)), rng.choice(KINDS)) for _ in places]:
        rgb = _colour(colour, rng)
        if min(math.dist(rgb, each) for each in ground) < LEAST_CONTRAST:
            return None
        shapes.append(Shape(colour, kind, *places[len(shapes)], rng.uniform(-8, 8), rgb))
    return Scene(tuple(shapes), ground, rng.uniform(0, 2 * math.pi), rng.choice((0, 3, 6, 10)), rng.getrandbits(32))


def _colour(name: str, rng: random.Random) -> tuple[int, int, int]:
    hue, saturation, value = (middle + rng.uniform(-off, off) for middle, off in COLOURS[name])
    return _rgb(hue, saturation, value)


def _ground_colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two dull colours that are not far from each other; one in three grounds is plain."""
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(0, 0.22), rng.uniform(0.12, 1)
    first = _rgb(hue, saturation, value)
    if rng.random() < 1 / 3:
        return first, first
    other = min(1.0, max(0.1, value + rng.uniform(-0.2, 0.2)))
    return first, _rgb(hue + rng.uniform(-60, 60), saturation, other)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, *(min(1.0, max(0.0, part)) for part in (saturation, value)))
    return round(255 * red), round(255 * green), round(255 * blue)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draws a picture of coloured shapes that the demo's model was not trained on."
    )
    parser.add_argument("path", help="the file to write, such as picture.png")
    parser.add_argument("--seed", type=int, default=0, help="which one (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="its pixels along each side (default: %(default)s)")
    arguments = parser.parse_args()
    next(unseen_scenes(arguments.seed)).draw(arguments.side).save(arguments.path)


if __name__ == "__main__":
    main()
