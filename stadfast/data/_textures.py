"""Endless surfaces for :mod:`stadfast.data.synthetic`: random access by row, equal on every machine.

Every row is computed from its number alone. Only IEEE's exactly rounded operations (+ - * / floor) are used,
no sine and no exponential, so that the pictures are the same to the bit whatever the processor and library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

Floats = np.ndarray  # float32 throughout

_BLOCK = 16  # lattice rows that share a random stream


class Noise:
    """Random numbers addressed by (tag, row): the same whatever was asked before.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._block: Callable[[int, int, int], Floats] = lru_cache(maxsize=48)(self._draw)

    def _draw(self, tag: int, block: int, columns: int) -> Floats:
        raw = np.random.PCG64(np.random.SeedSequence((self.seed, tag, block))).random_raw(_BLOCK * columns)
        return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1).reshape(_BLOCK, columns)

    def values(self, tag: int, first: int, count: int, columns: int) -> Floats:
        """(count, columns) in [-1, 1): rows ``first`` ... of an endless table of independent numbers."""
        blocks = range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)
        table = np.concatenate([self._block(tag, block, columns) for block in blocks])
        offset = first - blocks[0] * _BLOCK
        return table[offset : offset + count]

    def along(self, tag: int, rows: np.ndarray, columns: int, cell: int) -> Floats:
        """(R, columns) in [-1, 1]: smooth along the rows (ascending) over ``cell`` of them, columns apart."""
        first, last = int(rows[0]) // cell, int(rows[-1]) // cell
        table = self.values(tag, first, last - first + 2, columns)
        index = rows // cell - first
        weight = smoothstep((rows % cell).astype(np.float32) / np.float32(cell))[:, None]
        return table[index] * (1 - weight) + table[index + 1] * weight

    def smooth(self, tag: int, rows: np.ndarray, columns: int, cells: tuple[int, int]) -> Floats:
        """(R, columns) in [-1, 1]: smooth in both directions, over ``cells`` (rows, columns)."""
        across, weight = lattice(columns, cells[1])
        table = self.along(tag, rows, int(across[-1]) + 2, cells[0])
        return table[:, across] * (1 - weight) + table[:, across + 1] * weight

    def streaks(self, tag: int, rows: np.ndarray, columns: int, cell: int) -> Floats:
        """(R, columns) as :meth:`along`, but each column has its turning points at rows of its own."""
        shift = ((self.values(tag + 1000, 0, 1, columns)[0] + 1) * (cell * 0.5)).astype(np.int64)
        place = rows[:, None] + shift
        first, last = int(rows[0]) // cell, int(rows[-1] + cell) // cell
        table = self.values(tag, first, last - first + 2, columns)
        weight = smoothstep((place % cell).astype(np.float32) / np.float32(cell))
        index, x = place // cell - first, np.arange(columns)
        return table[index, x] * (1 - weight) + table[index + 1, x] * weight

    def grain(self, tag: int, rows: np.ndarray, columns: int) -> Floats:
        """(R, columns), independent pixels of a triangular distribution in (-1, 1)."""
        table = self.values(tag, int(rows[0]), len(rows), 2 * columns)
        return (table[:, :columns] + table[:, columns:]) * np.float32(0.5)


def smoothstep(t: Floats) -> Floats:
    """0 to 1 with flat ends; ``t`` is clipped to [0, 1]."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def lattice(columns: int, cell: int) -> tuple[np.ndarray, Floats]:
    """Lattice index and weight of its right neighbour for each column."""
    x = np.arange(columns)
    return x // cell, smoothstep((x % cell).astype(np.float32) / np.float32(cell))


def wave(phase: Floats) -> Floats:
    """Smooth wave of period 1 between 0 and 1."""
    t = np.abs(2 * (phase - np.floor(phase)) - 1)
    return t * t * (3 - 2 * t)


def row_phase(rows: np.ndarray, period: float) -> tuple[np.ndarray, Floats]:
    """Whole periods and the rest in [0, 1) for each row, (R, 1); exact for rows far from the start."""
    turns = rows.astype(np.float64)[:, None] / period
    whole = np.floor(turns)
    return whole.astype(np.int64), (turns - whole).astype(np.float32)


# --------------------------------------------------------------------------------------------- woven

_WARP_PITCH, _WEFT_PITCH = 8.0, 7.0
_WARP_RGB = np.array((0.40, 0.47, 0.56), np.float32)
_WEFT_RGB = np.array((0.83, 0.80, 0.73), np.float32)
_GAP_RGB = np.array((0.13, 0.13, 0.15), np.float32)


class Threads:
    """The threads at each pixel of some rows; defects may change them before they are painted.

    Attributes:
        k, du: (R, W) number of the warp thread, and the distance from its middle in pitches, [-0.5, 0.5).
        m, dv: the same for the weft.
        warp, weft: (R, W) thickness in pitches; 0 where a thread is missing.
    """

    def __init__(self, noise: Noise, rows: np.ndarray, width: int) -> None:
        self.rows, self.width = rows, width
        x = np.arange(width, dtype=np.float32)
        drift = 5 * noise.along(1, rows, 1, 1500) + 0.35 * noise.along(2, rows, 1, 90)
        u = (x + drift + 1.1 * noise.smooth(3, rows, width, (70, 40))) / np.float32(_WARP_PITCH) + 4
        whole = np.floor(u)
        self.k, self.du = whole.astype(np.int64), u - whole - np.float32(0.5)
        picks, rest = row_phase(rows, _WEFT_PITCH)
        bow = noise.smooth(4, rows, width, (300, 200)) * 2 + noise.smooth(
            5, rows, width, (60, 48)
        ) * np.float32(0.8)
        v = rest + bow / np.float32(_WEFT_PITCH) + 2
        whole = np.floor(v)
        self.m, self.dv = picks + whole.astype(np.int64), v - whole - np.float32(0.5)
        self._tables(noise)

    def _tables(self, noise: Noise) -> None:
        """Thickness and brightness of each thread, changing slowly along it."""
        count = int(self.width / _WARP_PITCH) + 12
        own = noise.values(6, 0, 3, count)
        even = noise.along(7, self.rows, count, 45)
        at = np.arange(len(self.rows))[:, None]
        self.warp = (0.86 + 0.06 * own[0] + 0.05 * even)[at, self.k].astype(np.float32)
        self.warp_light = (1 + 0.07 * own[1] + 0.05 * noise.along(8, self.rows, count, 30))[at, self.k]
        self.warp_phase = own[2][self.k]
        first, last = int(self.m.min()), int(self.m.max())
        across, weight = lattice(self.width, 36)
        table = noise.values(9, first, last - first + 1, 2 * (int(across[-1]) + 2) + 3)
        half = (table.shape[1] - 3) // 2
        own = table[:, -3:]
        thick, light = (
            t[:, across] * (1 - weight) + t[:, across + 1] * weight
            for t in (table[:, :half], table[:, half:-3])
        )
        index, x = self.m - first, np.arange(self.width)
        self.weft = (0.88 + 0.06 * own[:, :1] + 0.07 * thick)[index, x].astype(np.float32)
        self.weft_light = (1 + 0.06 * own[:, 1:2] + 0.06 * light)[index, x]
        self.weft_phase = own[:, 2][index]

    def paint(self, noise: Noise) -> Floats:
        """(R, W, 3) linear light of a plain weave."""
        up = 1 - 2 * ((self.k + self.m) & 1).astype(np.float32)  # +1 where the warp lies on top
        across_warp = 2 * self.du / np.maximum(self.warp, np.float32(1e-3))
        across_weft = 2 * self.dv / np.maximum(self.weft, np.float32(1e-3))
        round_warp, round_weft = 1 - across_warp * across_warp, 1 - across_weft * across_weft
        rise_warp, rise_weft = up * (1 - 4 * self.dv * self.dv), -up * (1 - 4 * self.du * self.du)
        has_warp = np.clip(3 * round_warp, 0, 1)
        has_weft = np.clip(3 * round_weft, 0, 1)
        over = smoothstep((rise_warp - rise_weft + 0.5 * (round_warp - round_weft)) * np.float32(0.9) + 0.5)
        over = np.where(has_weft <= 0, 1, over) * has_warp
        fibre = noise.smooth(10, self.rows, self.width, (3, 2)) + noise.grain(11, self.rows, self.width)
        _, turn = row_phase(self.rows, 5.3)
        twist = wave(turn + self.du * 1.1 + self.warp_phase)
        warp = self.warp_light * (0.58 + 0.34 * np.maximum(round_warp, 0)) * (0.82 + 0.2 * rise_warp)
        warp = warp * (0.9 + 0.16 * twist + 0.07 * fibre + 0.14 * self.du)
        x = np.arange(self.width, dtype=np.float32)
        twist = wave(x / np.float32(6.1) - self.dv * 1.2 + self.weft_phase)
        weft = self.weft_light * (0.60 + 0.34 * np.maximum(round_weft, 0)) * (0.82 + 0.2 * rise_weft)
        weft = weft * (0.9 + 0.16 * twist + 0.07 * fibre - 0.16 * self.dv)
        below = (1 - over) * has_weft
        gap = 1 - over - below
        return (
            (over * warp)[..., None] * _WARP_RGB
            + (below * weft)[..., None] * _WEFT_RGB
            + gap[..., None] * _GAP_RGB
        )


# ------------------------------------------------------------------------------------------- brushed

_STEEL_RGB = np.array((0.60, 0.62, 0.645), np.float32)


def brushed(noise: Noise, rows: np.ndarray, width: int) -> Floats:
    """(R, W, 3) linear light of metal brushed along the rows: streaks of many lengths and widths."""
    light = (
        1 + 0.025 * noise.smooth(21, rows, width, (700, 60)) + 0.035 * noise.smooth(22, rows, width, (420, 6))
    )
    for tag, weight, cell in ((23, 0.06, 300), (24, 0.075, 140), (25, 0.07, 60), (26, 0.035, 20)):
        light = light + np.float32(weight) * noise.streaks(tag, rows, width, cell)
    groove = noise.streaks(27, rows, width, 190)  # the strongest streaks only
    light = light - 0.45 * np.maximum(groove - 0.72, 0) + 0.35 * np.maximum(-groove - 0.78, 0)
    tint = 1 + np.array((0.004, 0, -0.006), np.float32) * noise.smooth(29, rows, width, (500, 90))[..., None]
    return light[..., None] * _STEEL_RGB * tint


def soften(image: Floats) -> Floats:
    """(R + 2, W, 3) -> (R, W, 3): the lens, a binomial blur of a fraction of a pixel."""
    image = image[1:-1] * np.float32(0.72) + (image[:-2] + image[2:]) * np.float32(0.14)
    sides = np.concatenate([image[:, :1], image, image[:, -1:]], axis=1)
    return image * np.float32(0.72) + (sides[:, :-2] + sides[:, 2:]) * np.float32(0.14)


def camera(noise: Noise, rows: np.ndarray, image: Floats) -> np.ndarray:
    """(R, W, 3) light -> uint8 as a line-scan camera sees it: fall-off to the sides, column gains, noise."""
    width = image.shape[1]
    t = (np.arange(width, dtype=np.float32) * 2 + 1) / np.float32(width) - 1
    profile = 1 - 0.17 * t * t - 0.03 * t * t * t + 0.008 * noise.values(31, 0, 1, width)[0]
    lamp = 1 + 0.012 * noise.along(32, rows, 1, 800) + 0.004 * noise.along(33, rows, 1, 3)
    image = image * (profile * lamp)[..., None]
    shot = noise.grain(34, rows, 3 * width).reshape(image.shape)
    image = image + shot * (0.016 + 0.028 * image)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
