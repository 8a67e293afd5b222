"""Lines from cameras: through OpenCV (extra ``video``) and through GenICam (extra ``genicam``)."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from ...errors import SourceError, UsageError
from .base import NOTHING, Block, Notice, Source

# GenTL producers may wait with the interpreter locked: they are asked briefly and often instead.
_FETCH_S, _SLEEP_S = 1e-4, 1e-3
_LSB_BITS = {"Mono10": 10, "Mono12": 12, "Mono14": 14, "Mono16": 16}  # in two bytes each, lowest bits used


class VideoDevice(Source):
    """The rows of a video's frames, one frame below the other: a frame grabber's, or a file's, which is not live.

    Args:
        device: number or path of a device, path of a file, or an address, as OpenCV's ``VideoCapture`` takes them.
        rows: (first, end) of each frame; None: all.

    Raises:
        UsageError: OpenCV is missing, or ``rows`` is no range.
    """

    def __init__(self, device: int | str | os.PathLike[str], rows: tuple[int, int] | None = None) -> None:
        try:
            import cv2
        except ImportError as error:
            raise UsageError("a video source needs OpenCV: pip install 'stadfast[video]'") from error
        if rows is not None and not 0 <= rows[0] < rows[1]:
            raise UsageError(f"rows: expected (first, end) of a frame, 0 <= first < end, got {rows!r}")
        self._cv2: Any = cv2
        text = os.fspath(device) if isinstance(device, os.PathLike) else device
        self._device = int(text) if isinstance(text, str) and text.isdecimal() else text
        self._rows = slice(*rows) if rows else slice(None)
        self._is_file = isinstance(self._device, str) and os.path.isfile(self._device)  # noqa: PTH113
        self.live = not self._is_file
        self._capture: Any = None
        self.name = f"video {text}"

    def open(self) -> None:
        self.close()
        self._capture = self._cv2.VideoCapture(self._device)
        if not self._capture.isOpened():
            self.close()
            raise SourceError(f"cannot open {self.name}")

    def read(self, timeout: float) -> Block | None:
        if self._capture is None:
            raise SourceError(f"{self.name} is not open")
        there, frame = self._capture.read()  # waits without the interpreter's lock, at most for a frame
        if not there:
            if self._is_file:
                return None
            raise SourceError(f"{self.name} delivers no more frames")
        frame = frame[self._rows]
        if frame.dtype not in (np.uint8, np.uint16) or not len(frame):
            raise SourceError(
                f"{self.name} delivers {frame.dtype} frames of shape {frame.shape}; wanted 8 or 16 bits"
            )
        rows = frame[:, :, None] if frame.ndim == 2 else frame[:, :, 2::-1]  # OpenCV has blue first
        return Block(np.ascontiguousarray(rows))

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class GenICamCamera(Source):
    """The lines of a GenICam camera (GigE Vision, USB3 Vision, CoaXPress, Camera Link HS) through harvesters.

    Pixel formats: ``Mono8``, ``Mono10`` to ``Mono16`` (unpacked), ``RGB8``. A buffer of the camera is a block of lines.
    One that is lost on the way, or arrives incomplete and is left out by harvesters, is a ``gap`` in the numbers of the
    frames, where the producer gives them: as many lines as the next buffer has count as lost for each, but not in the
    lines' numbers.

    Args:
        producer: path of the GenTL producer (``.cti``) of the camera's maker.
        serial_number: of the camera; None: the only one there is.
        features: GenICam features to set before acquisition, such as ``{"AcquisitionLineRate": 20000}``.

    Raises:
        UsageError: harvesters is missing.
    """

    live = True

    def __init__(
        self,
        producer: str | os.PathLike[str],
        serial_number: str | None = None,
        features: dict[str, Any] | None = None,
    ) -> None:
        try:
            from harvesters.core import Harvester
        except ImportError as error:
            raise UsageError("a GenICam source needs harvesters: pip install 'stadfast[genicam]'") from error
        self._make: Any = Harvester
        self._producer, self._serial, self._features = (
            os.fspath(producer),
            serial_number,
            dict(features or {}),
        )
        self._harvester: Any = None
        self._acquirer: Any = None
        self._frame: int | None = None
        self.name = f"camera {serial_number or '(the only one)'} of {self._producer}"

    def open(self) -> None:
        self.close()
        if not os.path.isfile(self._producer):  # noqa: PTH113 (harvesters would only log it)
            raise SourceError(f"no GenTL producer at {self._producer}")
        try:
            self._harvester = self._make()
            self._harvester.add_file(self._producer)
            self._harvester.update()
            search = {"serial_number": self._serial} if self._serial else None
            self._acquirer = self._harvester.create(search)
            for name, value in self._features.items():
                getattr(self._acquirer.remote_device.node_map, name).value = value
            self._acquirer.start()
            self._frame = None
        except Exception as error:  # harvesters and producers raise what they like
            self.close()
            raise SourceError(f"cannot open {self.name}: {error}") from error

    def read(self, timeout: float) -> Block | None:
        if self._acquirer is None:
            raise SourceError(f"{self.name} is not open")
        deadline = time.monotonic() + timeout
        try:
            while (buffer := self._acquirer.try_fetch(timeout=_FETCH_S)) is None:
                if time.monotonic() >= deadline:
                    return NOTHING
                time.sleep(_SLEEP_S)
            with buffer:  # goes back to the camera afterwards: the lines are copied
                lines = self._lines(buffer.payload.components[0])
                return Block(lines, notices=self._gap(frame_number(buffer), len(lines)))
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self.name} failed: {error}") from error

    def _gap(self, frame: int | None, lines: int) -> tuple[Notice, ...]:
        """What is missing before this frame. A number that is not above the last one begins anew, as after 16 bits."""
        last, self._frame = self._frame, frame
        if frame is None or last is None or frame <= last + 1:
            return ()
        frames = frame - last - 1
        message = f"{frames * lines} lines lost: {self.name} or its driver lost {frames} frames before frame {frame}"
        return (Notice("gap", message, details={"lines": frames * lines, "frames": frames}),)

    def _lines(self, image: Any) -> np.ndarray:
        format, height, width = image.data_format, image.height, image.width
        if format not in ("Mono8", "RGB8", *_LSB_BITS):
            wanted = ", ".join(("Mono8", "RGB8", *_LSB_BITS))
            raise SourceError(f"{self.name} delivers {format}; set its PixelFormat to one of {wanted}")
        channels = 3 if format == "RGB8" else 1
        data = np.asarray(image.data).reshape(height, -1)[:, : width * channels]  # lines may be padded
        if format in _LSB_BITS:
            bits = _LSB_BITS[format]
            data = data.astype(np.uint16)
            data = data << 16 - bits | data >> 2 * bits - 16  # white becomes 65535
        return np.array(data.reshape(height, width, channels))

    def close(self) -> None:
        """Stop the acquisition and let go of camera and producer, whatever state they are in."""
        acquirer, harvester = self._acquirer, self._harvester
        self._acquirer = self._harvester = None
        steps = [] if acquirer is None else [acquirer.stop, acquirer.destroy]
        for step in steps + ([] if harvester is None else [harvester.reset]):
            try:
                step()
            except Exception:  # a camera that is gone cannot be stopped
                continue


def frame_number(buffer: Any) -> int | None:
    """GenTL's number of the frame in a buffer of harvesters; None: the producer does not give it."""
    try:
        return int(buffer.module.frame_id)
    except Exception:  # producers raise what they like
        return None
