"""What the maps of a trained stereotype detector, their distance and their students bring.

    python benchmarks/reproduce.py stereotype bottle/ --weights resnet18.pth --work runs/
    python benchmarks/stereotype_ablation.py runs/stereotype_bottle.safetensors bottle/ --name bottle

Nothing is trained again. Each of the three maps, and every sum of them; the same with Euclidean distances where the
detector has Mahalanobis ones; and the doctor without students: the Mahalanobis distance of its descriptors from their
mean over good images. Results go to ``results/stereotype_ablation_NAME.json``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from ablations import HEADER, kept, parse, row
from common import print_table, write_result
from torch import Tensor

import stadfast as sf
from stadfast.data import read_mask, resize_mask
from stadfast.methods.sources import images_of, read_resized

BATCH = 4
Maps = Callable[[Tensor], Tensor]  # normalised images -> (B, K, H, W)


def main() -> None:
    options = parse("The maps of a trained stereotype detector.", "stereotype_ablation")
    detector = sf.load(options.model, device="cpu")
    assert isinstance(detector, sf.StereotypeDeepening)
    data, tree = sf.MVTecLayout(options.data), detector.graph_.network
    cases = []
    masks = [
        None if sample.mask is None else resize_mask(read_mask(sample.mask), tree.size)
        for sample in data.test
    ]

    def add(name: str, maps: Tensor) -> None:
        figures = sf.metrics.evaluate(
            list(maps), masks, labels=[sample.label for sample in data.test],
            types=[sample.defect for sample in data.test],
        )  # fmt: skip
        cases.append({"case": name, "figures": kept(figures)})
        print(*row(cases[-1]), flush=True)

    for name, maps in sums(tree.terms, run(detector, tree.term_maps, data.test)).items():
        add(name, maps)
    if len(tree.whitening):
        plain = euclidean(tree)
        good = run(detector, plain.term_maps, data.train[::4])
        plain.term_scale.copy_(good.std((0, 2, 3)))
        for name, maps in sums(tree.terms, run(detector, plain.term_maps, data.test)).items():
            add(f"{name}, Euclidean", maps)
    add("doctor alone", run(detector, doctor_alone(detector, data), data.test)[:, 0])
    print_table(HEADER, [row(c) for c in cases])
    arguments = {k: v for k, v in detector.header()["arguments"].items() if k in ("arch", "doctor", "widths")}
    print(
        write_result(
            f"stereotype_ablation_{options.name}", cases, {"test_images": len(data.test), **arguments}
        )
    )


@torch.no_grad()
def run(detector: Any, maps: Maps, images: Any) -> Tensor:
    preprocess = detector.graph_.preprocess
    read = [x for _, x in read_resized(images_of([i.image for i in images]), preprocess, torch.device("cpu"))]
    return torch.cat([maps(preprocess(batch)) for batch in torch.stack(read).split(BATCH)])


def sums(terms: list[str], maps: Tensor) -> dict[str, Tensor]:
    """Every sum of the maps (N, terms, H, W)."""
    chosen = [
        c for count in range(1, len(terms) + 1) for c in itertools.combinations(range(len(terms)), count)
    ]
    return {" + ".join(terms[i] for i in c): maps[:, list(c)].sum(1) for c in chosen}


def euclidean(tree: Any) -> Any:
    other = copy.deepcopy(tree)
    other.whitening.copy_(torch.eye(tree.channels).expand_as(other.whitening))
    other.reduce()
    other.term_scale.fill_(1)
    return other


def descriptors(tree: Any, images: Tensor) -> Tensor:
    """The doctor's own."""
    codes = tree.codes(images, tree.stride)[0]
    return tree.doctor.head(codes) if hasattr(tree.doctor, "head") else codes


def doctor_alone(detector: Any, data: Any) -> Maps:
    """Maps of the distance from the mean of good images' descriptors, by their covariance."""
    tree = detector.graph_.network

    def said(images: Tensor) -> Tensor:
        return tree.standardised(0, descriptors(tree, images))

    rows = run(detector, said, data.train[::2]).transpose(0, 1).flatten(1).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T / rows.shape[1])
    matrix = ((values.clamp_min(0) + 0.01 * values.mean()).rsqrt()[:, None] * vectors.T).float()

    def maps(images: Tensor) -> Tensor:
        distance = torch.einsum("ij,bjhw->bihw", matrix, said(images)).square().sum(1, keepdim=True).sqrt()
        return sf.ops.upsample_combine([distance], tree.size)

    return maps


if __name__ == "__main__":
    main()
