"""``stadfast score``: any number of images in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import load
from .._files import atomic_write
from .._progress import progress
from ..data import list_images, read_image
from ..errors import DataError
from ._guard import printable, say
from ._output import JsonList, check_writable, opened, picture_names


def score(
    model: Path,
    paths: Sequence[Path],
    *,
    json: str | None,
    heatmaps: Path | None,
    device: str,
    batch_size: int,
    skip_broken: bool,
    native_scale: bool | None = None,
) -> None:
    """Print ``path, score, verdict`` of each image, separated by tabs; write JSON and pictures if asked."""
    check_writable("--json", json)
    detector = load(model, device=device)
    images = list_images(list(paths))
    if heatmaps is not None:  # an earlier run may have written its pictures below the images
        images = [image for image in images if heatmaps.resolve() not in image.resolve().parents]
        if not images:
            raise DataError(
                f"every image lies in {heatmaps}, the folder for heat maps; wanted another folder"
            )
    names = dict(zip(images, picture_names(images), strict=True))
    with opened(json) as file, progress("scoring", len(images)) as job:
        head = {"model": model, "method": detector.method, "threshold": detector.threshold_}
        results = JsonList(file, head, "images")
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "skip_broken": skip_broken,
            "native_scale": native_scale,
        }
        for files, out in detector.stream(images, **options):
            for index, path in enumerate(files):
                assert isinstance(path, Path)  # arrays would have numbers
                value, defective = float(out.pred_score[index]), bool(out.pred_label[index])
                results.append({"path": path, "score": value, "defective": defective})
                if json != "-":
                    print(f"{printable(path)}\t{value:.6g}\t{'defective' if defective else 'good'}")
                if heatmaps is not None:
                    write_heatmap(
                        heatmaps / names[path], path, out.anomaly_map[index], detector.pixel_threshold_
                    )
            job.advance(len(files))
        skipped = [{"path": path, "reason": reason} for path, reason in detector.broken_]
        results.close({"skipped": skipped})
    warn_broken(detector.broken_)


def write_heatmap(path: Path, image: Path, anomaly_map: Tensor, threshold: float) -> None:
    """The image with its heat map laid over it, as a PNG file."""
    from PIL import Image

    from ..report import overlay

    with atomic_write(path) as temporary:
        picture = Image.fromarray(overlay(read_image(image), anomaly_map, threshold))
        picture.save(temporary, "PNG", compress_level=4)


def warn_broken(broken: Sequence[tuple[Path, str]]) -> None:
    """List the files left out on standard error."""
    for path, reason in broken:
        say(f"skipped {printable(path)}: {printable(reason)}")
