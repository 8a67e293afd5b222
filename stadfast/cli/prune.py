"""``stadfast prune``: search the weights of a detector's modules, and remove the least useful ones."""

from __future__ import annotations

from pathlib import Path

from .. import FeatureImitation, load
from ..errors import UsageError
from ._guard import printable
from ._output import check_writable


def prune(
    model: Path, data: Path, output: Path, *, keep: int | None, objective: str, fraction: float, seed: int,
    device: str,
) -> None:  # fmt: skip
    """Write the weighted (and, with ``keep``, smaller) detector, and print the modules that it has."""
    check_writable("--output", output)
    detector = load(model, device=device)
    if not isinstance(detector, FeatureImitation):
        raise UsageError(
            f"{model} is a detector of the method {detector.method}; only msfi has modules to prune"
        )
    detector.search_weights(data, objective, keep, fraction=fraction, seed=seed)
    if keep is not None:
        detector.prune()
    detector.save(output)
    print(
        f"{printable(output)}: {len(detector.modules_)} modules, "
        f"weighed on {len(detector.search_['images'])} images, threshold {detector.threshold_:.4g}"
    )
    for name, weight in sorted(detector.modules_.items(), key=lambda item: -item[1]):
        print(f"{weight:.4f}  {name}")
