"""A picture of Stereotype Deepening's three maps and their sum on generated material: docs/stereotype_maps.png.

python benchmarks/stereotype_maps.py [--weights resnet18.pth] [--epochs 8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import ROOT
from matplotlib.figure import Figure

import stadfast as sf
from stadfast.data.synthetic import write_material

KINDS = ("hole", "scratch", "stain")
_TOP = 0.9995  # quantile of all good maps where the colours end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="default")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-images", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write_material(folder, "woven", train=options.train_images, test_good=4, test_per_defect=1)
        detector = sf.StereotypeDeepening(weights=options.weights, epochs=options.epochs)
        detector.fit(root, show_progress=False)
        good = detector.term_maps(root / "test" / "good")
        paths = [root / "test" / kind / "000.png" for kind in KINDS]
        maps = detector.term_maps(paths)
        draw(paths, maps, good)


def draw(paths: list[Path], maps: dict[str, torch.Tensor], good: dict[str, torch.Tensor]) -> None:
    """One row an image: itself, the three maps, their sum, the mask; each column on one scale."""
    columns = {**maps, "sum": torch.stack(list(maps.values())).sum(0)}
    tops = {**good, "sum": torch.stack(list(good.values())).sum(0)}
    figure = Figure(figsize=(1.5 * (len(columns) + 2), 1.58 * len(paths)), layout="constrained", dpi=90)
    grid = figure.subplots(len(paths), len(columns) + 2)
    for row, path in enumerate(paths):
        mask = path.parents[2] / "ground_truth" / path.parent.name / "000_mask.png"
        grid[row, 0].imshow(sf.data.read_image(path).permute(1, 2, 0))
        grid[row, -1].imshow(sf.data.read_mask(mask), cmap="gray")
        for axes, (name, found) in zip(grid[row, 1:-1], columns.items(), strict=True):
            sample = tops[name].flatten()[::7]
            low, high = torch.quantile(sample, torch.tensor([0.05, _TOP])).tolist()
            axes.imshow(found[row, 0], cmap="magma", vmin=low, vmax=low + 2 * (high - low))
        for axes, name in zip(grid[row], ("image", *columns, "truth"), strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(name, fontsize=9)
    target = ROOT / "docs" / "stereotype_maps.png"
    figure.savefig(target)
    print(target)


if __name__ == "__main__":
    main()
