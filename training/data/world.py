"""Two procedural worlds: pictures and captions from the same labels, attributes known exactly.

`toy-small` shows one object in 32 px; `toy` shows two objects in a relation, with patterns and textured
grounds, in 64 px, and withholds some (colour, shape) pairs from training. Every picture is a function of
(labels, random generator), so data is a function of (seed, step) and a resumed run sees what the killed one
would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from npusim.errors import BadInputError
from npusim.training.data.shapes import SHAPES, Field, coverage

Labels = NDArray[np.int64]
"""One row per picture, one column per attribute: [N, A], each entry an index into that attribute's values."""
Pictures = NDArray[np.float32]
"""[N, 3, H, W], -1 black to 1 white."""

Combinations = Literal["seen", "held-out", "every"]
"""Which labels are drawn: those that diffusion networks train on, only withheld ones, or both as they come."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 52, 58),
    "orange": (245, 132, 31),
    "yellow": (250, 205, 40),
    "green": (46, 160, 86),
    "blue": (48, 98, 214),
    "purple": (142, 68, 190),
}
SIZES = ("small", "large")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that can be right or wrong about a picture."""

    name: str
    values: tuple[str, ...]


class World(Protocol):
    """A source of labelled, captioned pictures."""

    @property
    def name(self) -> str:
        """As presets name it."""

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What can be right or wrong, in the order of a row of labels."""

    @property
    def tested(self) -> tuple[Combinations, ...]:
        """The sets of combinations that networks are judged on, each apart."""

    def draw_labels(
        self, rng: np.random.Generator, count: int, combinations: Combinations = "seen"
    ) -> Labels:
        """Draw labels, uniformly among these combinations."""

    def seen(self, labels: Labels) -> NDArray[np.bool_]:
        """Which rows of labels diffusion networks may train on: [N]."""

    def captions(self, labels: Labels, rng: np.random.Generator) -> list[str]:
        """Write one caption per row of labels."""

    def render(self, labels: Labels, rng: np.random.Generator) -> Pictures:
        """Draw one picture per row of labels; position, shade and size vary a little."""

    def words(self) -> tuple[str, ...]:
        """Every word that a caption can hold."""


def _grid(count: int, resolution: int) -> tuple[Field, Field]:
    """Pixel centres: x and y, [N, H, W]."""
    axis = np.arange(resolution, dtype=np.float32) + np.float32(0.5)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.broadcast_to(x, (count, *x.shape)), np.broadcast_to(y, (count, *y.shape))


def _distance(names: Sequence[str], which: Labels, x: Field, y: Field, radius: Field) -> Field:
    """Signed distance to the shape that each row of `which` names; shapes not asked for are not computed."""
    out = np.empty(x.shape, np.float32)
    for index, name in enumerate(names):
        rows = which == index
        if rows.any():
            out[rows] = SHAPES[name](x[rows], y[rows], radius[rows])
    return out


def _blend(canvas: Pictures, alpha: Field, colour: Pictures) -> Pictures:
    """Lay `colour` [N, 3, H, W] over the canvas where alpha [N, H, W] covers it; values 0 to 1."""
    a = alpha[:, None]
    return np.asarray(canvas * (1 - a) + colour * a)


def _palette(colours: dict[str, tuple[int, int, int]]) -> NDArray[np.float32]:
    return np.asarray(list(colours.values()), np.float32) / np.float32(255)


def _uniform(rng: np.random.Generator, count: int, low: float, high: float) -> Field:
    """[N, 1, 1] numbers, uniform in [low, high)."""
    return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class OneObject:
    """toy-small: one object in a corner of a plain ground; six words, 768 combinations, none withheld."""

    name: str = "toy-small"
    resolution: int = 32
    attributes: tuple[Attribute, ...] = (
        Attribute("size", SIZES),
        Attribute("colour", tuple(COLOURS)),
        Attribute("shape", ("circle", "square", "triangle", "cross")),
        Attribute("row", ("top", "bottom")),
        Attribute("column", ("left", "right")),
        Attribute("ground", ("snow", "night", "slate", "sand")),
    )
    tested: tuple[Combinations, ...] = ("seen",)

    def draw_labels(
        self, rng: np.random.Generator, count: int, combinations: Combinations = "seen"
    ) -> Labels:
        """Draw each attribute uniformly; this world withholds nothing, so `combinations` changes nothing."""
        columns = [rng.integers(0, len(a.values), count) for a in self.attributes]
        return np.stack(columns, axis=1)

    def seen(self, labels: Labels) -> NDArray[np.bool_]:
        """All of them."""
        return np.ones(len(labels), np.bool_)

    def captions(self, labels: Labels, rng: np.random.Generator) -> list[str]:
        """Six words in a fixed order, such as "small red circle top left sand"."""
        return [" ".join(a.values[i] for a, i in zip(self.attributes, row, strict=True)) for row in labels]

    def words(self) -> tuple[str, ...]:
        """Every attribute value."""
        return tuple(dict.fromkeys(v for a in self.attributes for v in a.values))

    def render(self, labels: Labels, rng: np.random.Generator) -> Pictures:
        """Draw the pictures. labels: [N, 6]. Returns [N, 3, 32, 32] float32."""
        count = len(labels)
        size, colour, shape, row, column, ground = labels.T
        x, y = _grid(count, self.resolution)
        centre_x = np.where(column == 0, 9.5, 22.5).astype(np.float32)[:, None, None] + _uniform(
            rng, count, -1, 1
        )
        centre_y = np.where(row == 0, 9.5, 22.5).astype(np.float32)[:, None, None] + _uniform(
            rng, count, -1, 1
        )
        radius = np.where(size == 0, 5.0, 8.0).astype(np.float32)[:, None, None] + _uniform(
            rng, count, -0.3, 0.3
        )
        dx, dy = x - centre_x, y - centre_y
        grounds = (
            np.asarray([(244, 244, 240), (28, 32, 58), (128, 137, 150), (232, 214, 180)], np.float32) / 255
        )
        fall = (np.float32(1.03) - np.float32(0.06) * y / self.resolution)[:, None]
        canvas = np.asarray(grounds[ground][:, :, None, None] * fall)
        light = np.float32(1) - np.float32(0.10) * np.clip(dy / radius, -1, 1)[:, None]
        paint = np.asarray(_palette(COLOURS)[colour][:, :, None, None] * light, np.float32)
        alpha = coverage(_distance(self.attributes[2].values, shape, dx, dy, radius))
        return np.asarray(np.clip(_blend(canvas, alpha, paint), 0, 1) * 2 - 1, np.float32)


HELD_OUT_PAIRS = (
    ("red", "star"),
    ("orange", "cross"),
    ("yellow", "ring"),
    ("green", "triangle"),
    ("blue", "square"),
)
"""(colour, shape) pairs that no picture shows on which `toy`'s autoencoder or diffusion networks train.

The judge learns them too. Our choice: one pair for each of five colours.
"""

TURNED = 0.15
"""Share of sentences that begin with the right or lower object.

Our choice: with a half, the order of mention tells nothing until the relation is understood and the other way round, and
a small network learned neither (docs/training.md).
"""

_RELATIONS = {
    ("beside", False): "left of",
    ("beside", True): "right of",
    ("stacked", False): "above",
    ("stacked", True): "below",
}


@dataclass(frozen=True, slots=True)
class TwoObjects:
    """toy: two patterned objects beside or above one another on a textured ground; captions are sentences.

    Labels describe the picture, not the sentence: `first` is the left or upper object. "A left of B" and
    "B right of A" are two sentences for one picture.
    """

    name: str = "toy"
    resolution: int = 64
    attributes: tuple[Attribute, ...] = (
        Attribute("relation", ("beside", "stacked")),
        Attribute("first size", SIZES),
        Attribute("first pattern", ("plain", "striped", "dotted")),
        Attribute("first colour", tuple(COLOURS)),
        Attribute("first shape", tuple(SHAPES)),
        Attribute("second size", SIZES),
        Attribute("second pattern", ("plain", "striped", "dotted")),
        Attribute("second colour", tuple(COLOURS)),
        Attribute("second shape", tuple(SHAPES)),
        Attribute("ground", ("paper", "wood", "brick", "grass", "water")),
    )
    tested: tuple[Combinations, ...] = ("seen", "held-out")

    def _withheld(self, labels: Labels) -> NDArray[np.bool_]:
        """Which rows show a withheld (colour, shape) pair: [N] bool."""
        colours, shapes = tuple(COLOURS), tuple(SHAPES)
        codes = [colours.index(c) * len(shapes) + shapes.index(s) for c, s in HELD_OUT_PAIRS]
        first = np.isin(labels[:, 3] * len(shapes) + labels[:, 4], codes)
        second = np.isin(labels[:, 7] * len(shapes) + labels[:, 8], codes)
        return np.asarray(first | second)

    def draw_labels(
        self, rng: np.random.Generator, count: int, combinations: Combinations = "seen"
    ) -> Labels:
        """Draw uniformly, then keep rows without (or only with) a withheld pair, or keep all."""
        kept: list[Labels] = []
        while sum(map(len, kept)) < count:
            drawn = np.stack([rng.integers(0, len(a.values), count) for a in self.attributes], axis=1)
            if combinations != "every":
                drawn = drawn[self._withheld(drawn) == (combinations == "held-out")]
            kept.append(drawn)
        return np.concatenate(kept)[:count]

    def seen(self, labels: Labels) -> NDArray[np.bool_]:
        """Rows without a withheld pair: [N] bool."""
        return ~self._withheld(labels)

    def _noun(self, row: NDArray[np.int64], first: int) -> str:
        """Such as "large striped red star"; `plain` is not said."""
        values = [self.attributes[first + k].values[row[first + k]] for k in range(4)]
        return " ".join(v for v in values if v != "plain")

    def captions(self, labels: Labels, rng: np.random.Generator) -> list[str]:
        """Such as "a small red circle left of a large striped blue cross on wood", from either side."""
        turned = rng.random(len(labels)) < TURNED
        sentences = []
        for row, turn in zip(labels, turned, strict=True):
            subject, other = (
                (self._noun(row, 5), self._noun(row, 1)) if turn else (self._noun(row, 1), self._noun(row, 5))
            )
            relation = _RELATIONS[self.attributes[0].values[row[0]], bool(turn)]
            sentences.append(f"a {subject} {relation} a {other} on {self.attributes[9].values[row[9]]}")
        return sentences

    def words(self) -> tuple[str, ...]:
        """Every word of the grammar."""
        spoken = [v for a in self.attributes[1:] for v in a.values if v != "plain"]
        return tuple(dict.fromkeys(["a", "on", "of", "left", "right", "above", "below", *spoken]))

    def render(self, labels: Labels, rng: np.random.Generator) -> Pictures:
        """Draw the pictures. labels: [N, 10]. Returns [N, 3, 64, 64] float32."""
        count = len(labels)
        x, y = _grid(count, self.resolution)
        canvas = _grounds(self.resolution)[labels[:, 9]] * _uniform(rng, count, 0.95, 1.05)[:, None]
        stacked = (labels[:, 0] == 1)[:, None, None]
        for first, along in ((1, 17.5), (5, 46.5)):
            across = 32 + _uniform(rng, count, -6, 6)
            near = np.float32(along) + _uniform(rng, count, -1.5, 1.5)
            centre_x, centre_y = np.where(stacked, across, near), np.where(stacked, near, across)
            canvas = self._draw_object(canvas, labels[:, first : first + 4], x - centre_x, y - centre_y, rng)
        return np.asarray(np.clip(canvas, 0, 1) * 2 - 1, np.float32)

    def _draw_object(
        self, canvas: Pictures, labels: Labels, dx: Field, dy: Field, rng: np.random.Generator
    ) -> Pictures:
        """Lay one object and its shadow over the canvas. labels: [N, 4]; dx, dy: [N, H, W] offsets."""
        size, pattern, colour, shape = labels.T
        radius = np.where(size == 0, 8.0, 12.5).astype(np.float32)[:, None, None]
        radius = np.asarray(radius + _uniform(rng, len(labels), -0.5, 0.5))
        names = self.attributes[4].values
        soft = np.clip(0.5 - _distance(names, shape, dx - 1.2, dy - 2.0, radius) / 4, 0, 1)
        canvas = _blend(canvas, np.asarray(np.float32(0.35) * soft), np.zeros_like(canvas))
        light = np.float32(1) - np.float32(0.12) * np.clip(dy / radius, -1, 1)[:, None]
        paint = np.asarray(_palette(COLOURS)[colour][:, :, None, None] * light, np.float32)
        paint = _blend(paint, _marks(pattern, self.resolution), np.full_like(paint, 0.97))
        return _blend(canvas, coverage(_distance(names, shape, dx, dy, radius)), paint)


def _marks(pattern: Labels, resolution: int) -> Field:
    """Where white stripes or dots lie: [N, H, W]; fixed to the picture, so that a latent can hold them."""
    axis = np.arange(resolution, dtype=np.float32) + np.float32(0.5)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    stripes = np.clip(1.5 - np.abs(np.mod(x + y, 8) - 4), 0, 1)
    near = np.hypot(np.mod(x, 8) - 2, np.mod(y, 8) - 2), np.hypot(np.mod(x, 8) - 6, np.mod(y, 8) - 6)
    dots = np.clip(1.9 - np.minimum(*near), 0, 1)
    table = np.stack([np.zeros_like(x), stripes, dots]).astype(np.float32)
    return np.asarray(table[pattern] * np.float32(0.9))


def _grounds(resolution: int) -> Pictures:
    """The five textured grounds, [5, 3, H, W], 0 to 1; the same in every picture but for their brightness."""
    axis = np.arange(resolution, dtype=np.float32) + np.float32(0.5)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    grain = np.sin(y * 1.1 + 1.5 * np.sin(x * 0.09) + 0.6 * np.sin(y * 0.35))
    row = np.floor(y / 8)
    mortar = (np.mod(y, 8) < 1.2) | (np.mod(x + 8 * np.mod(row, 2), 16) < 1.2)
    speckle = (
        np.random.default_rng(5).uniform(-1, 1, (resolution // 2, resolution // 2)).repeat(2, 0).repeat(2, 1)
    )
    waves = np.sin(y * 0.8 + 1.2 * np.sin(x * 0.25))
    tints = ((242, 238, 228), (176, 130, 88), (176, 104, 88), (120, 168, 96), (112, 176, 206))
    depth = (np.zeros_like(x), 0.09 * grain, np.where(mortar, 0.22, 0.0), 0.09 * speckle, 0.09 * waves)
    base = np.asarray(tints, np.float32)[:, :, None, None] / np.float32(255)
    return np.asarray(base + np.stack(depth).astype(np.float32)[:, None])


_WORLDS: dict[str, Callable[[], World]] = {"toy-small": OneObject, "toy": TwoObjects}


def world(name: str) -> World:
    """Return the world of that name.

    Raises:
        BadInputError: no such world.
    """
    if name not in _WORLDS:
        raise BadInputError(f"world {name!r}: no such procedural world; there are {', '.join(_WORLDS)}")
    return _WORLDS[name]()
