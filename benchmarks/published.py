"""The figures that the papers print, for ``reproduce.py``. AUROC; ``pro`` as each paper defines it.

``mean`` is over the 15 categories of MVTec AD.
"""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    # Wang et al. 2021, arXiv 2103.04257; PRO from the authors' code, which rescales both axes.
    "stpm": {"bottle": {"pro": 0.951}, "mean": {"image_auroc": 0.955, "pixel_auroc": 0.970}},
    # Enhanced-teacher STPM: the image figure is given as a mean only.
    "et-stpm": {"bottle": {"pixel_auroc": 0.981}, "mean": {"image_auroc": 0.971, "pixel_auroc": 0.977}},
    "rstpm": {"bottle": {"pixel_auroc": 0.989}, "mean": {"image_auroc": 0.969, "pixel_auroc": 0.977}},
    "msfi": {"bottle": {"pixel_auroc": 0.986}, "mean": {"pixel_auroc": 0.983, "pro": 0.927}},
    # Salehi et al. 2021, arXiv 2011.11108; pixels on anomalous images only.
    "mkd": {
        "bottle": {"image_auroc": 0.9939, "pixel_auroc": 0.9632},
        "mean": {"image_auroc": 0.8774, "pixel_auroc": 0.9071},
    },
    "stereotype": {"bottle": {"pixel_auroc": 0.9533}, "mean": {"pixel_auroc": 0.885}},
}


def published(method: str, category: str) -> dict[str, float] | None:
    """The paper's figures for a category (found by its name in a folder's name), None where it has none."""
    for name, figures in PUBLISHED.get(method, {}).items():
        if name in category:
            return figures
    return None
