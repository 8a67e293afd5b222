"""The reference under the compiled ops' names: archives call these, and run where the kernels are missing."""

from __future__ import annotations

import torch

from . import reference

RECORDED = (
    "pyramid_distance",
    "anomaly_map",
    "upsample_combine",
    "peer_distance",
)  # what graphs hold of ours
_libraries: list[torch.library.Library] = []  # an op lasts as long as its library


def define() -> None:
    """Where no library of ours is loaded."""
    library = torch.library.Library("stadfast", "FRAGMENT")
    for name in RECORDED:
        function = getattr(reference, name)
        library.define(name + torch.library.infer_schema(function, mutates_args=()))
        library.impl(name, function, "CompositeImplicitAutograd")
    _libraries.append(library)


def serve_cuda() -> None:
    """Where the library for GPUs alone is missing."""
    library = torch.library.Library("stadfast", "IMPL")
    for name in RECORDED:
        library.impl(name, getattr(reference, name), "CUDA")
    _libraries.append(library)
