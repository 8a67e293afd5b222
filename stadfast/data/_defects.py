"""Defects for :mod:`stadfast.data.synthetic`, painted onto the light before the camera sees it.

A painter gets the pixels around a defect as ``Patch``, changes ``patch.light`` and returns the mask (R, W).
Like the textures, each pixel depends on its own place only, so that a defect may be painted in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._textures import Floats, Noise, Threads, smoothstep, wave


@dataclass(frozen=True)
class Defect:
    """One defect of a web.

    Attributes:
        kind: see :data:`~stadfast.data.synthetic.DEFECTS`.
        row, column: its middle, in pixels of the web.
        size: half of its largest extent, pixels.
        contrast: 0 (invisible) to 1.
        seed: of its shape.
    """

    kind: str
    row: int
    column: int
    size: float
    contrast: float = 1.0
    seed: int = 0

    @property
    def reach(self) -> int:
        """Rows above and below ``row`` that it may touch."""
        return int(1.5 * self.size) + 8


@dataclass
class Patch:
    """Some rows of the web around a defect.

    Attributes:
        defect: what is to be painted.
        noise: the defect's own.
        rows: (R,) rows from the top of the defect's reach, 0 or more, ascending.
        y, x: (R, 1) and (1, W) pixels from the defect's middle.
        light: (R, W, 3), changed in place.
    """

    defect: Defect
    noise: Noise
    rows: np.ndarray
    y: Floats
    x: Floats
    light: Floats

    def random(self, tag: int, count: int) -> Floats:
        """``count`` numbers in [-1, 1) of this defect's own."""
        return self.noise.values(tag, 0, 1, count)[0]

    def smooth(self, tag: int, cell_rows: int, cell_columns: int) -> Floats:
        """(R, W) noise in [-1, 1]."""
        return self.noise.smooth(tag, self.rows, self.light.shape[1], (cell_rows, cell_columns))

    def turned(self, tag: int) -> tuple[Floats, Floats]:
        """(R, W) coordinates along and across a random direction."""
        t = float(self.random(tag, 1)[0])  # tangent of half the angle: a rotation without sine and cosine
        cosine, sine = np.float32((1 - t * t) / (1 + t * t)), np.float32(2 * t / (1 + t * t))
        return self.x * cosine + self.y * sine, self.y * cosine - self.x * sine

    def blend(self, alpha: Floats, colour: Floats) -> None:
        self.light += alpha[..., None] * (colour - self.light)


def blotch(patch: Patch, elongation: float, roughness: float) -> Floats:
    """(R, W): 0 in the middle of an irregular ellipse, 1 at its rim, growing outwards."""
    along, across = patch.turned(1)
    size = np.float32(patch.defect.size)
    coarse, fine = max(int(patch.defect.size * 0.6), 3), max(int(patch.defect.size * 0.25), 3)
    radius = (along * along + across * across * np.float32(elongation * elongation)) / (size * size)
    return radius * (1 + roughness * patch.smooth(2, coarse, coarse)) + 0.12 * patch.smooth(3, fine, fine)


def stain(patch: Patch) -> Floats:
    """A soft dark blotch with a darker rim, as a dried liquid leaves it."""
    q = blotch(patch, 1.45, 0.5)
    body = smoothstep((1 - q) * 2.2)
    rim = smoothstep(1 - np.abs(q - 0.8) * 4)
    depth = (
        np.float32(patch.defect.contrast) * (0.40 * body + 0.16 * rim) * (1 + 0.25 * patch.smooth(4, 9, 9))
    )
    patch.light *= 1 - depth[..., None] * np.array((0.75, 0.95, 1.25), np.float32)
    return q < 0.9


def hole(patch: Patch) -> Floats:
    """Dark, with frayed ends of threads at the rim and some loose fibres across it."""
    whole = blotch(patch, 1.25, 0.35)
    q = whole + 0.30 * patch.smooth(5, 2, 9) + 0.30 * patch.smooth(6, 9, 2)
    q = q + 2 * np.maximum(whole - 1.15, 0)  # no fray far from the rim
    shade = smoothstep(1 - np.abs(q - 1.15) * 2.5) * np.float32(0.25)
    patch.light *= 1 - shade[..., None]
    dark = np.float32(0.30 - 0.24 * patch.defect.contrast) * (1 + 0.35 * patch.smooth(7, 7, 7))
    patch.blend(smoothstep((1 - q) * 4), dark[..., None] * np.array((1, 0.97, 0.95), np.float32))
    for i in range(4):
        place, slope, bend, length = patch.random(10 + i, 4)
        along, across = (patch.y, patch.x) if i % 2 else (patch.x, patch.y)
        t = along / np.float32(patch.defect.size)
        line = across - np.float32(patch.defect.size) * (0.7 * place + 0.4 * slope * t + 0.25 * bend * t * t)
        end = smoothstep((0.3 + 0.5 * length - t * (1 if bend > 0 else -1)) * 3)
        fibre = smoothstep(1.1 - np.abs(line)) * end * smoothstep((1.15 - q) * 5)
        colour = (0.34, 0.40, 0.48) if i % 2 else (0.62, 0.60, 0.55)
        patch.blend(fibre * np.float32(0.8), np.array(colour, np.float32))
    return whole < 1.12


def slub(patch: Patch) -> Floats:
    """A stretch of weft of several times the usual thickness, lying on top."""
    size = np.float32(patch.defect.size)
    bend = 1.6 * patch.noise.smooth(20, np.zeros(1, np.int64), patch.light.shape[1], (8, 30))
    lumps = patch.noise.smooth(21, np.zeros(1, np.int64), patch.light.shape[1], (8, 11))
    t = patch.x / size
    half = np.maximum(1 - t * t, 0) * (1 + 0.35 * lumps) * np.float32(3 + 5.5 * patch.defect.contrast)
    y = (patch.y - bend) / np.maximum(half, np.float32(0.5))
    fuzz = 0.22 * patch.smooth(22, 2, 3)
    profile = 1 - (y + fuzz) * (y + fuzz)
    alpha = smoothstep(profile * 3) * smoothstep(half * 0.6)
    below = smoothstep(1 - np.abs(y - 1.25) * 2) * smoothstep(half * 0.4)
    patch.light *= 1 - 0.35 * (below * (1 - alpha))[..., None]
    twist = wave(patch.x / np.float32(9.5) - y * 0.9 + 0.15 * patch.smooth(23, 5, 9))
    fibre = patch.smooth(24, 1, 4)
    bright = (0.55 + 0.40 * np.maximum(profile, 0)) * (0.88 + 0.16 * twist + 0.10 * fibre) * (1 - 0.12 * y)
    patch.blend(alpha, bright[..., None] * np.array((0.90, 0.87, 0.80), np.float32))
    return alpha > 0.35


def scratch(patch: Patch) -> Floats:
    """A thin bent line, bright with a dark flank (or the other way round)."""
    size = patch.defect.size
    along, across = patch.turned(30)
    corners = [(i / 3 * 2 - 1) * size * 0.95 for i in range(4)]
    bends = patch.random(31, 4) * np.float32(size * 0.16)
    line = np.zeros_like(along)
    for i in range(3):
        t = np.clip((along - np.float32(corners[i])) / np.float32(corners[i + 1] - corners[i]), 0, 1)
        line = line + (bends[i + 1] - bends[i]) * t
    distance = across - line - bends[0]
    taper = smoothstep((np.float32(size * 0.95) - np.abs(along)) / np.float32(0.25 * size))
    width = np.float32(0.7 + 0.5 * patch.defect.contrast) * (1 + 0.35 * patch.smooth(32, 8, 8)) * taper
    sign = np.float32(1 if patch.random(33, 1)[0] > -0.4 else -1)
    strength = np.float32(0.25 + 0.5 * patch.defect.contrast) * (1 + 0.3 * patch.smooth(34, 5, 5)) * sign
    core = smoothstep(width + 0.5 - np.abs(distance)) * taper
    flank = smoothstep(width + 0.5 - np.abs(distance - 1.9)) * taper
    patch.light *= (1 + strength * core - 0.5 * strength * flank)[..., None]
    return (np.abs(distance - 0.5) < width + 0.9) & (taper > 0.15)


def dent(patch: Patch) -> Floats:
    """A shallow hollow: one side catches the light, the other one loses it."""
    q = blotch(patch, 1.2, 0.12)
    along, across = patch.turned(1)
    bowl = smoothstep((1.15 - q) * 1.1)
    slope = (0.6 * along + 0.8 * across) / np.float32(patch.defect.size)
    strength = np.float32(0.08 + 0.45 * patch.defect.contrast)
    patch.light *= (1 + strength * bowl * slope * (1.4 - 0.4 * q) - 0.05 * bowl)[..., None]
    return q < 0.95


def pit(patch: Patch) -> Floats:
    """A small, dark, sharp-edged spot with a bright lip on one side."""
    q = blotch(patch, 1.15, 0.3)
    inside = smoothstep((1 - q) * 3) * np.float32(0.45 + 0.45 * patch.defect.contrast)
    lip = smoothstep(1 - np.abs(q - 1.2) * 3) * smoothstep(
        (patch.x + patch.y) / np.float32(patch.defect.size)
    )
    patch.light *= (1 + 0.45 * lip * np.float32(patch.defect.contrast))[..., None]
    patch.blend(inside, (0.13 + 0.05 * patch.smooth(7, 3, 3))[..., None] * np.ones(3, np.float32))
    return q < 1.05


def take_thread_out(threads: Threads, defect: Defect, pick: int) -> np.ndarray:
    """Thin a stretch of weft thread ``pick`` or take it out, before painting; returns the mask (R, W)."""
    x = np.arange(threads.width, dtype=np.float32) - np.float32(defect.column)
    end = smoothstep((np.float32(defect.size) - np.abs(x)) / np.float32(6))
    hit = (threads.m == pick) & (end > 0)
    keep = 1 - end * np.float32(min(0.35 + 0.75 * defect.contrast, 1))
    threads.weft = np.where(hit, threads.weft * keep, threads.weft)
    return hit & (end > 0.5)


PAINTERS: dict[str, Callable[[Patch], Floats]] = {
    "dent": dent, "hole": hole, "pit": pit, "scratch": scratch, "slub": slub, "stain": stain,
}  # fmt: skip
