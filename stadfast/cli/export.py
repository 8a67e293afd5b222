"""``stadfast export``: a detector's graph as an archive for deployment."""

from __future__ import annotations

from pathlib import Path

from .. import load
from ..data import list_images
from ..errors import StadfastError, UsageError
from ..runtime import Scorer, compare
from ..runtime import export as write
from ..runtime.scorer import AGREE
from ._guard import printable


def export(
    model: Path,
    output: Path,
    *,
    format: str,
    precision: str,
    size: str | tuple[int, int] | int,
    portable: bool,
    aot: bool,
    verify: Path | None,
) -> None:
    """Write the archive, and with ``verify`` score the images there through both."""
    if aot and verify is not None:
        raise UsageError("--verify: Scorer does not run machine code (--aot)")
    detector = load(model, device="cpu")
    write(detector, output, format, precision=precision, size=size, portable=portable, aot=aot)
    print(f"wrote {printable(output)} ({output.stat().st_size / 1e6:.1f} MB, {format}, {precision})")
    if verify is None:
        return
    wanted = "fp32" if precision == "fp32" or format in ("onnx", "openvino") else "auto"
    found = compare(detector, Scorer(output, device="cpu", precision=wanted), list_images(verify))
    print(
        f"over {found.images} images the archive differs from the detector by at most\n"
        f"  score  {found.score:.3g} ({found.relative_score:.2g} of the largest)\n"
        f"  map    {found.map:.3g} ({found.relative_map:.2g} of the largest)\n"
        f"and gives {found.verdicts} other verdicts"
    )
    if not found.relative_map <= AGREE:
        raise StadfastError(f"{printable(output)} does not agree with the detector: do not use it")
