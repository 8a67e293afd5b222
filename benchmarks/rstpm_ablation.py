"""What the students and the levels of a trained rstpm detector bring to its map.

    python benchmarks/reproduce.py rstpm bottle/ --weights resnet18.pth --work runs/
    python benchmarks/rstpm_ablation.py runs/rstpm_bottle.safetensors bottle/ --name bottle

Nothing is trained again: maps are made of some of the six distances, the sum over students and the product over levels
as in the detector, here after the upsampling. Results go to ``results/rstpm_ablation_NAME.json``.
"""

from __future__ import annotations

from typing import Any

import torch
from ablations import HEADER, kept, parse, row
from common import print_table, write_result
from torch import Tensor

import stadfast as sf

STUDENTS, LEVELS = ("imitator", "decoder"), ("level 1", "level 2", "level 3")


def main() -> None:
    options = parse("Students and levels of a trained rstpm detector.", "rstpm_ablation")
    detector = sf.load(options.model, device="cpu")
    assert isinstance(detector, sf.ReconstructionSTPM)
    figures, records = sf.evaluate(detector, sf.MVTecLayout(options.data).test)
    chunks = torch.arange(len(records)).split(16)
    maps = torch.cat([detector.level_maps([records[i].image for i in chunk]) for chunk in chunks])
    cases = [{"case": "detector", "figures": kept(figures)}]
    for name, chosen in parts(maps).items():
        cases.append({"case": name, "figures": kept(evaluated(chosen, records))})
    print_table(HEADER, [row(c) for c in cases])
    print(write_result(f"rstpm_ablation_{options.name}", cases, {"test_images": len(records)}))


def parts(maps: Tensor) -> dict[str, Tensor]:
    """Name -> (N, H, W), out of the distances (N, 2, 3, H, W)."""
    found = {"both students": maps.sum(1).prod(1)}
    found |= {f"{name} alone": maps[:, i].prod(1) for i, name in enumerate(STUDENTS)}
    found |= {f"{name} alone": maps[:, :, i].sum(1) for i, name in enumerate(LEVELS)}
    return found


def evaluated(maps: Tensor, records: list[Any]) -> dict[str, Any]:
    return sf.metrics.evaluate(
        list(maps), [record.mask for record in records], labels=[record.label for record in records],
        types=[record.defect for record in records],
    )  # fmt: skip


if __name__ == "__main__":
    main()
