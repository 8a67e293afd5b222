"""The scorer takes what cameras and folders give, from many threads, and refuses the rest in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast.errors import BundleError, DataError, StadfastError, UsageError
from stadfast.methods.hardware import deterministic_algorithms
from stadfast.runtime import Scorer, export
from stadfast.runtime.memory import resident_memory


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, detectors: object) -> Path:
    return export(detectors("stpm"), tmp_path_factory.mktemp("archive") / "model.pt")  # type: ignore[operator]


@pytest.fixture(scope="module")
def scorer(archive: Path) -> Scorer:
    return Scorer(archive, device="cpu", precision="fp32")


def test_it_says_what_the_detector_says(detector: sf.Detector, images: Tensor) -> None:
    wanted = detector.predict(images)
    scorer = Scorer(detector, device="cpu", precision="fp32", batch_size=2)
    found = scorer(images)
    assert scorer.path == "fused"
    assert type(found) is sf.Prediction
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    assert (found.anomaly_map - wanted.anomaly_map).abs().max() <= 1e-4 * wanted.anomaly_map.abs().max()
    assert (found.pred_score - wanted.pred_score).abs().max() <= 1e-4 * wanted.pred_score.abs().max()


def test_half_precision_is_close(detector: sf.Detector, images: Tensor) -> None:
    wanted = detector.predict(images)
    found = Scorer(detector, device="cpu", precision="bf16")(images)
    assert found.anomaly_map.dtype == torch.float32
    assert (found.pred_score - wanted.pred_score).abs().max() <= 0.05 * wanted.pred_score.abs().max()


def test_all_kinds_of_images_give_the_same(scorer: Scorer, images: Tensor, tmp_path: Path) -> None:
    wanted = scorer(images)
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    for i, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    kinds = {
        "array NHWC": array,
        "tensor NHWC": torch.from_numpy(array),
        "floats": images.float() / 255,
        "list of arrays": list(array),
        "list of tensors": list(images),
        "paths": sorted(tmp_path.iterdir()),
        "folder": str(tmp_path),
        "pictures": [Image.fromarray(image) for image in array],
        "16 bits": (array.astype(np.uint16) * 257),
        "alpha": torch.cat([images, images[:, :1]], dim=1),
        "mirrored view": np.flip(np.flip(array, 1).copy(), 1),
    }
    for name, kind in kinds.items():
        found = scorer(kind)
        assert torch.allclose(found.pred_score, wanted.pred_score, rtol=1e-4), name
        assert found.anomaly_map.shape == (5, 1, 64, 64), name
    one = scorer(array[0])
    assert one.pred_score.shape == (1,)
    torch.testing.assert_close(one.anomaly_map, wanted.anomaly_map[:1], rtol=1e-4, atol=1e-5)
    grey = scorer(images[0, 0])
    expanded = scorer(images[:1, :1].expand(1, 3, -1, -1))
    torch.testing.assert_close(grey.pred_score, expanded.pred_score, rtol=1e-4, atol=0)


def test_where_both_ends_could_be_channels(scorer: Scorer, images: Tensor) -> None:
    lines = images[:2, :, :3].contiguous()  # (2, 3, 3, 72), channels first, as a tensor's are
    wanted = scorer(lines).pred_score
    array = lines.permute(0, 2, 3, 1).contiguous().numpy()[:, :, :3]  # channels last, as an array's are
    torch.testing.assert_close(scorer(array).pred_score, scorer(lines[..., :3]).pred_score, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        scorer(lines.permute(0, 2, 3, 1).numpy()).pred_score, wanted, rtol=1e-4, atol=0
    )
    plane = images[0, 0, :3, :]  # a grey image of three rows has no channels
    assert scorer(plane).anomaly_map.shape == scorer(plane.numpy()).anomaly_map.shape == (1, 1, 64, 64)


def test_arrays_of_other_machines(scorer: Scorer, images: Tensor) -> None:
    array = images.permute(0, 2, 3, 1).numpy().astype(np.uint16) * 257
    swapped = array.astype(array.dtype.newbyteorder())
    assert torch.equal(scorer(swapped).pred_score, scorer(array).pred_score)


def test_images_of_several_sizes_keep_their_order(scorer: Scorer, images: Tensor) -> None:
    mixed = [images[0], images[1, :, :70], images[2, :, :70], images[3]]
    found = scorer(mixed)
    for i, image in enumerate(mixed):
        torch.testing.assert_close(found.pred_score[i : i + 1], scorer(image).pred_score, rtol=1e-4, atol=0)


def test_a_stream_says_which_file_a_score_belongs_to(
    scorer: Scorer, images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a detector's does; neighbours of one size make a batch."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[:, :, : 70 if path.stem == "4" else 72].permute(1, 2, 0).numpy()).save(path)
    one_by_one = [scorer(path).pred_score for path in paths]
    for source, names in (
        (tmp_path, paths),
        ([sf.data.Sample(path, 0) for path in paths], paths),
        ([sf.data.read_image(path) for path in paths], range(5)),
        ([images[:3], images[3], images[4, :, :, :70]], range(5)),
    ):
        found = list(scorer.stream(source))
        assert [sources for sources, _ in found] == [list(names[:4]), [names[4]]]
        scores = torch.cat([prediction.pred_score for _, prediction in found])
        torch.testing.assert_close(scores, torch.cat(one_by_one), rtol=1e-4, atol=0)
    assert [sources for sources, _ in scorer.stream(images.repeat(2, 1, 1, 1))] == [[*range(8)], [8, 9]]

    paths[1].write_text("no image")
    with pytest.raises(DataError, match=r"1\.png"):
        list(scorer.stream(tmp_path))
    found = list(scorer.stream(tmp_path, skip_broken=True))
    assert [sources for sources, _ in found] == [[paths[0], *paths[2:4]], paths[4:]]
    assert [record.args[0] for record in caplog.records] == [paths[1]]
    with pytest.raises(DataError, match="none of 1 images can be read"):
        list(scorer.stream(paths[1], skip_broken=True))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list is empty"),
        (np.zeros((5, 6, 7), np.uint8), "C = 1, 3 or 4; for a batch of grey images"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "dtype int32"),
        (torch.full((3, 8, 8), 9.0), "values from 9 to 9"),
        (torch.full((3, 8, 8), torch.nan), "values from nan"),
        (torch.zeros(0, 3, 8, 8), "shape"),
        ("no/such/folder", "no/such/folder"),
    ],
    ids=str,
)
def test_images_that_cannot_be_used(scorer: Scorer, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scorer(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a number from 1"),
        ({"threads": 0}, "threads: expected a number from 1"),
        ({"precision": "int8"}, "precision: expected auto"),
        ({"precision": "fp16"}, "fp16 is for GPUs"),
        ({"device": "tpu"}, "device: expected"),
    ],
)
def test_wrong_arguments(archive: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(archive, **{"device": "cpu", **arguments})


def test_what_is_no_source() -> None:
    with pytest.raises(UsageError, match="expected an archive or a fitted detector, got int"):
        Scorer(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="got STPM"):
        Scorer(sf.STPM())


def test_eight_threads_give_the_results_of_one(scorer: Scorer, images: Tensor) -> None:
    wanted = scorer(images)
    failures: list[str] = []

    def work(offset: int) -> None:
        for i in range(6):
            first = (offset + i) % 5
            found = scorer(images[first : first + 1])
            difference = (found.anomaly_map - wanted.anomaly_map[first]).abs().max()
            if (
                difference > 1e-5 * wanted.anomaly_map.max()
            ):  # a convolution may share its sums out differently
                failures.append(f"image {first}: {difference}")

    singles = [scorer(images[i : i + 1]).anomaly_map for i in range(5)]
    wanted = wanted._replace(anomaly_map=torch.cat(singles))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_hours_do_not_cost_memory(scorer: Scorer, images: Tensor) -> None:
    """Eight threads, batches and sizes mixed: what is resident after many calls is what was after some."""

    def work(calls: int) -> None:
        for i in range(calls):
            scorer(images[: 4 + i % 2, :, : 60 + i % 5])

    if not resident_memory():
        pytest.skip("this system does not say")
    calls, threads, grown = 10, 8, []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            before = resident_memory()
            for done in [pool.submit(work, calls) for _ in range(threads)]:
                done.result()
            grown.append(resident_memory() - before)
    height, width = scorer.image_size
    maps = threads * calls * 4 * height * width * 4  # at least, in bytes
    assert min(grown) < maps / 2  # had it kept them, or anything larger, each round would have added as much


def test_deterministic_mkd(detectors: object, images: Tensor) -> None:
    """Its map has another operator then."""
    detector = detectors("mkd")  # type: ignore[operator]
    found = Scorer(detector, device="cpu", precision="fp32", deterministic=True)(images)
    torch.testing.assert_close(found.pred_score, detector.score(images), rtol=1e-4, atol=0)


def test_images_are_there_before_they_are_read(
    scorer: Scorer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy from a GPU that nobody waits for arrives when the scores are done."""
    waited = []
    to = Tensor.to

    def watched(self: Tensor, *arguments: object, **options: object) -> Tensor:
        waited.append(not options.get("non_blocking"))
        return to(self, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", watched)
    scorer(images)
    assert waited
    assert all(waited)


def test_deterministic(archive: Path, images: Tensor) -> None:
    scorer = Scorer(archive, device="cpu", deterministic=True)
    assert torch.equal(scorer(images).anomaly_map, scorer(images).anomaly_map)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_calls_that_overlap(before: bool) -> None:
    """Two threads' calls, of which the first to begin is the first to end."""
    torch.use_deterministic_algorithms(before)
    try:
        first, second = deterministic_algorithms(True), deterministic_algorithms(True)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.are_deterministic_algorithms_enabled()
        second.__exit__(None, None, None)
        assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_graphs(stpm: sf.Detector, images: Tensor, precision: str) -> None:
    scorer = Scorer(stpm, device="cuda", precision=precision)
    assert scorer.path == "cuda graph"
    wanted = stpm.to("cpu").predict(images)
    for batch in (images, images[:1], images[1:3].cuda()):
        found = scorer(batch)
        assert found.pred_score.device == batch.device
    found = scorer(images)
    tolerance = 1e-3 if precision == "fp32" else 0.05
    assert (found.pred_score - wanted.pred_score).abs().max() <= tolerance * wanted.pred_score.abs().max()


# ------------------------------------------------------------------------------- damaged and hostile files


def rewrite(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    """A copy of a zip archive with some members (by the end of their names) replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = next((value for end, value in change.items() if name.endswith(end)), old.read(name))
            new.writestr(name, data)
    return target


def test_a_truncated_archive(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:size])
        with pytest.raises(BundleError, match=r"cut\.pt"):
            Scorer(tmp_path / "cut.pt", device="cpu")


def test_a_flipped_byte(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(BundleError, match="checksum"):
        Scorer(tmp_path / "flipped.pt", device="cpu")


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".zip"])
def test_not_an_archive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(BundleError, match="no such file"):
        Scorer(path)
    path.write_text("not a zip file")
    with pytest.raises(BundleError, match="damaged or no archive"):
        Scorer(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/b", "c")
    with pytest.raises(BundleError, match="stadfast did not export it"):
        Scorer(path)


def test_a_bundle_is_known_by_what_is_in_it(stpm: sf.Detector, images: Tensor, tmp_path: Path) -> None:
    stpm.metadata_ = {"data": {}, "training": {}}
    stpm.save(tmp_path / "model")
    found = Scorer(tmp_path / "model", device="cpu", precision="fp32")(images)
    assert torch.allclose(found.pred_score, stpm.score(images), rtol=1e-4)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_missing_package_is_no_damage(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"model{suffix}").write_text("an archive")
    for name in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StadfastError, match=rf"model{suffix} needs \w+: pip install 'stadfast"):
        Scorer(tmp_path / f"model{suffix}")


def test_mkds_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadfast.runtime.scorer.read_metadata", lambda path: {"method": "mkd"})
    with pytest.raises(UsageError, match="computes wrong maps for mkd"):
        Scorer(tmp_path / "model.onnx")


def test_openvino_runs_on_the_cpu_of_a_machine_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = {
        "method": "stpm", "threshold": 1.0, "pixel_threshold": 1.0, "network_size": [8, 8], "image_size": None,
        "precision": "fp16",
    }  # fmt: skip
    devices = []

    def compile_model(path: Path, precision: str, threads: int | None) -> object:
        def run(batch: Tensor) -> tuple[Tensor, ...]:
            devices.append(batch.device)
            score, map_ = torch.zeros(len(batch)), torch.zeros(len(batch), 1, 8, 8)
            return score, score > 1, map_, map_ > 1

        return run

    monkeypatch.setattr("stadfast.runtime.scorer.read_metadata", lambda path: metadata)
    monkeypatch.setattr("stadfast.runtime.openvino.compile_model", compile_model)
    monkeypatch.setattr("stadfast.methods.hardware.cpu_flags", lambda: frozenset(["amx_bf16"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for suffix in (".onnx", ".xml"):
        for device in ("auto", "cpu"):
            scorer = Scorer(tmp_path / f"model{suffix}", device=device)
            assert (scorer.device, scorer.precision) == (torch.device("cpu"), "bf16")
        for device in ("cuda", "cuda:0"):
            with pytest.raises(UsageError, match="device: expected auto or cpu, where OpenVINO runs"):
                Scorer(tmp_path / f"model{suffix}", device=device)
    assert set(devices) == {torch.device("cpu")}


def test_an_archive_is_no_detector(archive: Path) -> None:
    with pytest.raises(BundleError, match="exported archive, which Scorer and bench run"):
        sf.load(archive)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "high"), ("threshold", None), ("pixel_threshold", True), ("network_size", [64]),
        ("network_size", [1 << 40, 64]), ("image_size", "dynamic"), ("precision", "fp8"), ("portable", 1),
        ("method", 3),
    ],
)  # fmt: skip
def test_metadata_of_wrong_types(archive: Path, tmp_path: Path, name: str, value: object) -> None:
    with zipfile.ZipFile(archive) as file:
        member = next(n for n in file.namelist() if n.endswith("extra/stadfast.json"))
        metadata = json.loads(file.read(member)) | {name: value}
    path = rewrite(archive, tmp_path / "changed.pt", {"extra/stadfast.json": json.dumps(metadata).encode()})
    with pytest.raises(BundleError, match=f"has {name}"):
        Scorer(path, device="cpu")


@pytest.mark.parametrize("format", ["torchscript", "export"])
def test_archives_run_where_there_are_no_kernels(
    stpm: sf.Detector, images: Tensor, tmp_path: Path, format: str
) -> None:
    path = export(stpm, tmp_path / "model.pt", format)
    torch.save(images, tmp_path / "images")
    program = (
        "import sys, torch, stadfast as sf\n"
        "path, images = sys.argv[1:]\n"
        "scorer = sf.Scorer(path, device='cpu', precision='fp32')\n"
        "print(sf.ops.backend().name, *scorer(torch.load(images)).pred_score.tolist())"
    )
    name, *scores = subprocess.check_output(
        [sys.executable, "-c", program, path, tmp_path / "images"], text=True,
        env=os.environ | {"STADFAST_BACKEND": "reference"},
    ).split()  # fmt: skip
    assert name == "reference"
    torch.testing.assert_close(
        torch.tensor([float(s) for s in scores]), stpm.score(images), rtol=1e-4, atol=0
    )


def test_metadata_that_does_not_fit(archive: Path, tmp_path: Path) -> None:
    for metadata, message in (
        (b"{", "damaged"),
        (b"[]", "not what stadfast writes"),
        (b'{"format": 99}', "upgrade stadfast"),
        (b'{"format": 1}', "has no"),
    ):
        path = rewrite(archive, tmp_path / "changed.pt", {"extra/stadfast.json": metadata})
        with pytest.raises(BundleError, match=message):
            Scorer(path, device="cpu")


def test_code_that_does_more_than_compute_is_not_even_loaded(archive: Path, tmp_path: Path) -> None:
    class WritesAtLoading(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

        @torch.jit.export
        def __getstate__(self) -> int:
            return 1

        @torch.jit.export
        def __setstate__(self, state: int) -> None:
            self.training = False

    with zipfile.ZipFile(archive) as file:
        name = next(n for n in file.namelist() if n.endswith("extra/stadfast.json"))
        metadata = json.loads(file.read(name))
    path = tmp_path / "hostile.pt"
    torch.jit.script(WritesAtLoading()).save(str(path), _extra_files={"stadfast.json": json.dumps(metadata)})
    with pytest.raises(BundleError, match="is refused: its code has '__setstate__'"):
        Scorer(path, device="cpu")


def test_foreign_operators_and_file_access_are_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        name = next(n for n in file.namelist() if n.endswith(".py"))
        code = file.read(name)
    for line in (b"torch.save(x, 'f')", b"torch.from_file('f')", b"ops.foreign.op(x)"):
        path = rewrite(archive, tmp_path / "changed.pt", {name: code + b"\n# " + line})
        with pytest.raises(BundleError, match="is refused: its code has"):
            Scorer(path, device="cpu")


def test_an_exported_program_with_code_in_an_expression_is_refused(stpm: sf.Detector, tmp_path: Path) -> None:
    path = export(stpm, tmp_path / "model.pt2", "export")
    with zipfile.ZipFile(path) as file:
        text = file.read(next(n for n in file.namelist() if n.endswith("models/model.json"))).decode()
    assert '"expr_str": "Symbol(' in text
    changed = text.replace('"expr_str": "Symbol(', '"expr_str": "exec(\'1\') + Symbol(', 1)
    with pytest.raises(BundleError, match="is refused: it holds the expression"):
        Scorer(rewrite(path, tmp_path / "changed.pt2", {"models/model.json": changed.encode()}))
