"""STPM's latency and throughput: the Scorer against OpenVINO, anomalib's TorchInferencer and eager PyTorch.

    python benchmarks/latency.py MODEL.safetensors [--device cuda] [--rounds 40]

Needs the extra ``bench``. The same weights, the same uint8 images in memory and the same outputs (score, label, map,
mask) for all, in turn, in one process: ``stadfast bench --against ...`` in bf16 and fp32, as one result.

* ``stadfast``: ``sf.Scorer`` on the bundle
* ``openvino``: the same graph as ``sf.export(..., "openvino")`` writes it, in the same precision, compiled for each
  batch size, with the conversion from uint8 in its own graph
* ``openvino-dynamic``: compiled once for any batch and image size, as our archive is, and fed with floats
* ``compile``: the detector's graph through ``torch.compile`` with frozen weights, in the same precision
* ``aot``: the graph compiled ahead of time (``sf.export(..., "export", aot=True)``), which takes minutes to make
* ``anomalib``: ``TorchInferencer.predict`` on ``Stfpm`` with these weights, float32, image by image
* ``eager``: the detector's graph in PyTorch, float32
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from common import write_result

from stadfast.cli.bench import bench

PEERS = {
    "cpu": {
        "bf16": ["openvino", "openvino-dynamic", "compile", "eager", "anomalib"],
        "fp32": ["openvino", "openvino-dynamic", "compile"],
    },
    "cuda": {"fp16": ["compile", "eager", "anomalib"], "bf16": ["compile"]},  # compile: max-autotune
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=list(PEERS), default="cpu")
    parser.add_argument(
        "--against", help="peers in the first precision alone, such as aot; default: the table's"
    )
    parser.add_argument("--name", help="of the result: results/NAME.json; default: latency, latency_cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = []
    peers = PEERS[options.device]
    if options.against is not None:
        peers = {next(iter(peers)): options.against.split(",")}
    for precision, against in peers.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "result.json"
            bench(
                options.model, images=None, batches=[1, 8], against=against, precision=precision,
                device=options.device,
                threads=options.threads, rounds=options.rounds, json=str(target), plot=None,
            )  # fmt: skip
            result = json.loads(target.read_text())
        for case in result["cases"]:
            setting = {"precision": precision, "batch": case.pop("batch"), "path": result["path"]}
            memory = result["memory_mb"][str(setting["batch"])]
            cases.append({"case": setting, **case, "memory_mb": memory, "agreement": result["agreement"]})
    name = options.name or ("latency" if options.device == "cpu" else f"latency_{options.device}")
    parameters = {"network_size": result["network_size"], "rounds": options.rounds}
    print(write_result(name, cases, parameters, device=options.device))


if __name__ == "__main__":
    main()
