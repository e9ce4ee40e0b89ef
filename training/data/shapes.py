"""Signed distances of shapes, in pixels: negative inside, positive outside.

Anti-aliasing is one clip away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""One value per pixel: [N, H, W] float32."""


def circle(x: Field, y: Field, radius: Field) -> Field:
    """Distance to a disc. x, y: [N, H, W] pixels from the centre; radius: [N, 1, 1] pixels."""
    return np.hypot(x, y) - radius


def square(x: Field, y: Field, radius: Field) -> Field:
    """Distance to an upright square of about the disc's area."""
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) - np.float32(0.86) * radius)


def triangle(x: Field, y: Field, radius: Field) -> Field:
    """Distance to a triangle that points up."""
    side = np.float32(0.866) * np.abs(x) - np.float32(0.5) * (y + radius)
    return np.asarray(np.maximum(y - np.float32(0.72) * radius, side))


def cross(x: Field, y: Field, radius: Field) -> Field:
    """Distance to a plus sign."""
    arm = np.float32(0.34) * radius
    upright = np.maximum(np.abs(x) - arm, np.abs(y) - radius)
    flat = np.maximum(np.abs(x) - radius, np.abs(y) - arm)
    return np.asarray(np.minimum(upright, flat))


def star(x: Field, y: Field, radius: Field) -> Field:
    """Distance to a five-pointed star that points up."""
    sector = np.float32(2 * np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    rho = np.hypot(x, y)
    inner_x, inner_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    length = np.hypot(inner_y, 1.0 - inner_x)
    normal_x, normal_y = np.float32(inner_y / length), np.float32((1.0 - inner_x) / length)
    return np.asarray((rho * np.cos(angle) - radius) * normal_x + rho * np.sin(angle) * normal_y)


def ring(x: Field, y: Field, radius: Field) -> Field:
    """Distance to a ring."""
    return np.asarray(np.abs(np.hypot(x, y) - np.float32(0.72) * radius) - np.float32(0.27) * radius)


SHAPES: dict[str, Callable[[Field, Field, Field], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "cross": cross,
    "star": star,
    "ring": ring,
}


def coverage(distance: Field) -> Field:
    """How much of each pixel a shape covers, 0 to 1, from its signed distance."""
    return np.asarray(np.clip(np.float32(0.5) - distance, 0.0, 1.0))
