"""Files that Pillow does not write: 16-bit PNG of any channel count, 16-bit RGB TIFF, odd headers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np


def png16(path: Path, array: np.ndarray, orientation: int | None = None) -> Path:
    """Write (H, W, C) uint16 with C in 1..4 as a 16-bit PNG."""
    height, width, channels = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if orientation is not None:  # a TIFF header with one tag
        data += _chunk(
            b"eXIf", b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, orientation) + bytes(4)
        )
    path.write_bytes(data + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b""))
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and has one byte of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def tiff16_rgb(path: Path, array: np.ndarray) -> Path:
    """Write (H, W, 3) uint16 as an uncompressed little-endian TIFF."""
    height, width, _ = array.shape
    pixels = array.astype("<u2").tobytes()
    bits_at, pixels_at = 8, 14
    tags = [  # (tag, type, count, value), ascending; type 3 is SHORT, 4 LONG
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, pixels_at), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    header = struct.pack("<2sHI", b"II", 42, pixels_at + len(pixels))
    path.write_bytes(header + struct.pack("<HHH", 16, 16, 16) + pixels + directory)
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
