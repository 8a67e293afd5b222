"""What people do wrong, and what they are told: each message names the thing, and none is a traceback."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import stadfast as sf
from stadfast import metrics, ops
from stadfast.backbones import create_backbone
from stadfast.cli import app
from stadfast.errors import StadfastError
from stadfast.methods.bundle import read_tensors, write_tensors
from stadfast.report import heatmap, overlay

SIZE = 32
FIT = ("--image-size", str(SIZE), "--epochs", "1", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, weights and a model, all of them in order."""
    root = tmp_path_factory.mktemp("world")
    for index in range(4):
        save_image(root / "cloth" / "train" / "good" / f"{index}.png", seed=index)
    save_image(root / "cloth" / "test" / "good" / "0.png")
    save_image(root / "cloth" / "test" / "hole" / "0.png")
    save_image(root / "cloth" / "ground_truth" / "hole" / "0_mask.png", np.eye(40, dtype=np.uint8) * 255)
    weights = root / "weights.pth"
    torch.save(create_backbone("resnet18", seed=0).state_dict(), weights)
    detector = sf.STPM(weights=weights, image_size=SIZE, epochs=1, device="cpu", precision="fp32")
    detector.fit(root / "cloth", show_progress=False).save(root / "model.safetensors")
    return SimpleNamespace(root=root, cloth=root / "cloth", weights=weights, model=root / "model.safetensors")


def save_image(path, array=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


# ---------------------------------------- files that are no images


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def truncated(suffix):
    def write(path):
        half(save_image(path.with_suffix(suffix)))
        return path.with_suffix(suffix)

    return write


def contents(data):
    def write(path):
        path.write_bytes(data)
        return path

    return write


def pixels(array, suffix=".tif"):
    def write(path):
        return save_image(path.with_suffix(suffix), array)

    return write


IMAGES = {
    "missing": lambda path: path,
    "empty file": contents(b""),
    "text": contents(b"this is no image"),
    "html error page": contents(b"<!DOCTYPE html><html>404</html>"),
    "pickle": contents(pickle.dumps({"a": 1})),
    "only a signature": contents(b"\x89PNG\r\n\x1a\n"),
    "decompression bomb": contents(png_header(100_000, 100_000)),
    "no pixels": contents(png_header(0, 0)),
    "truncated png": truncated(".png"),
    "truncated jpeg": truncated(".jpg"),
    "truncated bmp": truncated(".bmp"),
    "truncated webp": truncated(".webp"),
    "NaN": pixels(np.full((40, 40), np.nan, np.float32)),
    "floats to 255": pixels(np.full((40, 40), 255.0, np.float32)),
    "integers beyond 16 bits": pixels(np.full((40, 40), 1 << 20, np.int32)),
    "empty folder": lambda path: (path.with_suffix("").mkdir(), path.with_suffix(""))[1],
}


@pytest.mark.parametrize("write", IMAGES.values(), ids=IMAGES.keys())
@pytest.mark.parametrize("command", ["score", "fit"])
def test_files_that_are_no_images(write, command, world, tmp_path):
    path = write(tmp_path / "odd.png")
    if command == "score":
        check_cli(1, path.name, "score", world.model, path)
    else:
        check_cli(1, path.name, "fit", path, "-o", tmp_path / "m", "--weights", world.weights, *FIT)


# ---------------------------------------- data sets


def no_mask(root):
    save_image(root / "test" / "hole" / "1.png")


def no_image(root):
    save_image(root / "ground_truth" / "hole" / "7_mask.png", np.zeros((40, 40), np.uint8))


def broken_mask(root):
    half(root / "ground_truth" / "hole" / "0_mask.png")


def mask_of_another_size(root):
    save_image(root / "ground_truth" / "hole" / "0_mask.png", np.full((20, 30), 255, np.uint8))


def empty_type(root):
    (root / "test" / "stain").mkdir()


DATA_SETS = {
    "an image without its mask": (no_mask, "1.png"),
    "a mask without its image": (no_image, "7_mask.png"),
    "a broken mask": (broken_mask, "0_mask.png"),
    "a mask of another size": (mask_of_another_size, "0_mask.png"),
    "an empty defect type": (empty_type, "stain"),
}


@pytest.mark.parametrize(("spoil", "name"), DATA_SETS.values(), ids=DATA_SETS.keys())
def test_damaged_data_sets(spoil, name, world, tmp_path):
    import shutil

    shutil.copytree(world.cloth, tmp_path / "cloth")
    spoil(tmp_path / "cloth")
    check_cli(1, name, "evaluate", world.model, tmp_path / "cloth")


def test_wrong_folders(world, tmp_path):
    check_cli(1, "nowhere", "fit", tmp_path / "nowhere", "-o", tmp_path / "m")
    check_cli(1, "cloth", "fit", world.root, "-o", tmp_path / "m")  # holds categories: which one?
    check_cli(1, "no test images", "evaluate", world.model, world.cloth / "train" / "good")


# ---------------------------------------- bundles


def reheaded(**changes):
    """The model with another header; None removes a key."""

    def write(world, path):
        tensors, header = read_tensors(world.model)
        header = {key: value for key, value in (header | changes).items() if value is not None}
        write_tensors(path, tensors, header)

    return write


def rearranged(change):
    def write(world, path):
        tensors, header = read_tensors(world.model)
        change(tensors)
        write_tensors(path, tensors, header)

    return write


def raw(data):
    return lambda world, path: path.write_bytes(data)


def shrink(tensors):
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = tensors[name][:1].clone()


def poison(tensors):
    tensors[next(name for name, tensor in tensors.items() if tensor.ndim == 4)].fill_(float("nan"))


def cut(world, path):
    path.write_bytes(world.model.read_bytes()[:-1000])


def flip_header(world, path):
    data = bytearray(world.model.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(bytes(data))


class Hostile:
    def __reduce__(self):
        return (Path("/tmp/stadfast-pwned").touch, ())


BUNDLES = {
    "missing": (lambda world, path: None, "no such file"),
    "folder": (lambda world, path: path.mkdir(), "folder"),
    "empty": (raw(b""), "odd"),
    "random bytes": (raw(bytes(range(256)) * 8), "odd"),
    "huge header length": (raw(b"\xff" * 64), "odd"),
    "pickle": (lambda world, path: torch.save({"a": torch.ones(1)}, path), "odd"),
    "hostile pickle": (raw(pickle.dumps(Hostile())), "odd"),
    "truncated": (cut, "odd"),
    "damaged header": (flip_header, "odd"),
    "weights of somebody": (
        lambda world, path: save_file({"a": torch.ones(1)}, path),
        "stadfast did not write it",
    ),
    "header no JSON": (lambda world, path: save_file({}, path, metadata={"stadfast": "{"}), "not JSON"),
    "header a list": (lambda world, path: save_file({}, path, metadata={"stadfast": "[]"}), "list"),
    "newer format": (reheaded(format=99), "upgrade"),
    "format a word": (reheaded(format="one"), "not a detector"),
    "a checkpoint": (reheaded(format="checkpoint-1"), "not a detector"),
    "unknown method": (reheaded(method="magic"), "magic"),
    "no method": (reheaded(method=None), "method"),
    "no arguments": (reheaded(arguments=None), "arguments"),
    "unknown argument": (reheaded(arguments={"teeth": 32}), "teeth"),
    "unknown backbone": (reheaded(arguments={"backbone": "lenet"}), "lenet"),
    "impossible size": (reheaded(arguments={"image_size": -5}), "image_size"),
    "size no number": (reheaded(arguments={"image_size": "big"}), "image_size"),
    "another backbone's tensors": (reheaded(arguments={"backbone": "vgg16", "image_size": SIZE}), "odd"),
    "no threshold": (reheaded(threshold=None), "threshold"),
    "threshold a word": (reheaded(threshold="high"), "odd"),
    "threshold NaN": (reheaded(threshold=float("nan")), "threshold"),
    "tensor missing": (rearranged(lambda tensors: tensors.popitem()), "odd"),
    "tensor too many": (rearranged(lambda tensors: tensors.update(extra=torch.ones(1))), "extra"),
    "tensor of another shape": (rearranged(shrink), "size"),
    "NaN in the weights": (rearranged(poison), "NaN"),
}


@pytest.mark.parametrize(("write", "words"), BUNDLES.values(), ids=BUNDLES.keys())
def test_damaged_and_hostile_bundles(write, words, world, tmp_path):
    path = tmp_path / "odd.safetensors"
    write(world, path)
    check_cli(1, words, "info", path)
    error = check_cli(1, words, "score", path, world.cloth / "test")
    assert path.name in error
    assert not Path("/tmp/stadfast-pwned").exists()


# ---------------------------------------- weights


def keys_missing(world, path):
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, path)


def keys_misshapen(world, path):
    state = torch.load(world.weights, weights_only=True)
    state["conv1.weight"] = torch.ones(64, 1, 7, 7)
    torch.save(state, path)


def not_finite(world, path):
    state = torch.load(world.weights, weights_only=True)
    state["conv1.weight"][0, 0, 0, 0] = float("inf")
    torch.save(state, path)


WEIGHTS = {
    "missing": (lambda world, path: None, "odd.pth"),
    "empty": (raw(b""), "odd.pth"),
    "text": (raw(b"conv1"), "odd.pth"),
    "truncated": (lambda world, path: path.write_bytes(world.weights.read_bytes()[:5000]), "odd.pth"),
    "hostile pickle": (raw(pickle.dumps(Hostile())), "odd.pth"),
    "a list": (lambda world, path: torch.save([1, 2], path), "odd.pth"),
    "keys missing": (keys_missing, "layer1"),
    "a tensor of another shape": (keys_misshapen, "conv1.weight"),
    "infinity": (not_finite, "conv1.weight"),
}


@pytest.mark.parametrize(("write", "words"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_damaged_and_hostile_weights(write, words, world, tmp_path):
    path = tmp_path / "odd.pth"
    write(world, path)
    check_cli(None, words, "fit", world.cloth, "-o", tmp_path / "m", "--weights", path, *FIT)
    assert not Path("/tmp/stadfast-pwned").exists()


# ---------------------------------------- arguments of the command line

ARGUMENTS = {
    "--method magic": "magic",
    "--backbone lenet": "lenet",
    "--set variant=best": "best",
    "--set variant": "NAME=VALUE",
    "--set colour=red": "colour",
    "--set background_quantile=[1]": "background_quantile",
    "--set learning_rate=fast": "learning_rate",
    "--set learning_rate=-1": "learning_rate",
    "--set momentum=NaN": "momentum",
    "--set validation_fraction=half": "validation_fraction",
    "--set patience=long": "patience",
    "--set cache_gb=true": "cache_gb",
    "--set seed=3": "--seed",
    "--set image_size=64": "--image-size",
    "--seed -1": "seed",
    "--seed 9223372036854775808": "seed",
    "--image-size big": "big",
    "--image-size 0": "image_size",
    "--image-size 8": "image_size",
    "--image-size 64x": "64x",
    "--image-size 64x64x3": "64x64x3",
    "--image-size -64": "--image-size",
    "--precision fp8": "fp8",
    "--device tpu": "tpu",
    "--device cuda:99": "cuda:99",
    "--epochs 0": "--epochs",
    "--epochs many": "--epochs",
    "--batch-size 0": "--batch-size",
    "--seed x": "--seed",
    "--weights best": "best",
    "--nonsense": "--nonsense",
}


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS.items(), ids=ARGUMENTS.keys())
def test_wrong_arguments(arguments, words, world, tmp_path):
    given = dict(zip(FIT[::2], FIT[1::2], strict=True)) | {"--weights": str(world.weights)}
    name, *value = arguments.split()
    given.pop(name, None)
    options = [word for pair in given.items() for word in pair]
    check_cli(None, words, "fit", world.cloth, "-o", tmp_path / "m", *options, name, *value)
    assert not (tmp_path / "m").exists()


def test_outputs_that_cannot_be_written(world, tmp_path):
    blocked = tmp_path / "file" / "out"
    blocked.parent.touch()
    test = world.cloth / "test"
    check_cli(2, str(blocked), "fit", world.cloth, "-o", blocked, "--weights", world.weights, *FIT)
    check_cli(2, str(tmp_path), "fit", world.cloth, "-o", tmp_path, "--weights", world.weights, *FIT)
    check_cli(2, str(blocked), "score", world.model, test, "--json", blocked)
    check_cli(2, str(tmp_path), "score", world.model, test, "--json", tmp_path)
    check_cli(1, str(blocked.parent), "score", world.model, test, "--heatmaps", blocked)
    check_cli(2, str(blocked), "evaluate", world.model, world.cloth, "--json", blocked)
    check_cli(2, str(blocked), "evaluate", world.model, world.cloth, "--report", blocked)


def test_checkpoints_that_cannot_be_continued(world, tmp_path):
    command = ("fit", world.cloth, "-o", tmp_path / "m", "--weights", world.weights, *FIT, "--resume")
    checkpoint = tmp_path / "m.checkpoint"
    checkpoint.write_bytes(b"damaged")
    check_cli(1, "m.checkpoint", *command)
    checkpoint.write_bytes(world.model.read_bytes())
    check_cli(1, "m.checkpoint", *command)


# ---------------------------------------- Python: arrays and arguments

IMAGE = torch.zeros(3, 40, 40, dtype=torch.uint8)
LEVEL = torch.ones(1, 2, 3, 3)
CALLS = {
    "no dimensions": (lambda d: d.predict(np.zeros(())), "shape"),
    "five dimensions": (lambda d: d.predict(np.zeros((1, 1, 4, 4, 3), np.uint8)), "shape"),
    "two channels": (lambda d: d.predict(np.zeros((40, 40, 2), np.uint8)), "shape"),
    "channels neither first nor last": (lambda d: d.predict(torch.zeros(40, 3, 40)), "shape"),
    "no pixels": (lambda d: d.predict(torch.zeros(3, 0, 40)), "shape"),
    "no images": (lambda d: d.predict(torch.zeros(0, 3, 40, 40)), "shape"),
    "integers": (lambda d: d.predict(np.zeros((40, 40, 3), np.int64)), "int64"),
    "complex numbers": (lambda d: d.predict(np.zeros((40, 40, 3), complex)), "complex128"),
    "objects": (lambda d: d.predict(np.full((40, 40, 3), None)), "object"),
    "floats to 255": (lambda d: d.predict(np.full((40, 40, 3), 200.0)), "divide by 255"),
    "normalised": (lambda d: d.predict(torch.randn(3, 40, 40)), "before normalisation"),
    "NaN": (lambda d: d.predict(torch.full((3, 40, 40), float("nan"))), "finite"),
    "infinity": (lambda d: d.predict(np.full((40, 40, 3), np.inf)), "finite"),
    "nothing": (lambda d: d.predict(None), "NoneType"),
    "a number": (lambda d: d.predict(3), "int"),
    "a dictionary": (lambda d: d.predict({"image": IMAGE}), "dict"),
    "an empty list": (lambda d: d.predict([]), "no images"),
    "a list with a hole": (lambda d: d.predict([IMAGE, None]), "NoneType"),
    "a list of paths and arrays": (lambda d: d.predict([IMAGE, "no.png"]), "mixed"),
    "not fitted": (lambda d: sf.STPM().predict(IMAGE), "not fitted"),
    "fit on too few": (lambda d: sf.STPM(validation_fraction=0.9).fit([IMAGE]), "few"),
    "quantile 2": (lambda d: d.calibrate(IMAGE, quantile=2.0), "quantile"),
    "two rules": (lambda d: d.calibrate(IMAGE, quantile=0.5, target_fpr=0.1), "exclude"),
    "rate 0": (lambda d: d.calibrate(IMAGE, target_fpr=0.0), "target_fpr"),
    "too few for the rate": (lambda d: d.calibrate(IMAGE, target_fpr=0.01), "99"),
    "save to a folder": (lambda d: d.save("/"), "/"),
    "load a number of epochs": (lambda d: sf.STPM(epochs=0).fit(IMAGE), "epochs"),
    "batch of half": (lambda d: sf.STPM(batch_size=0.5).fit(IMAGE), "batch_size"),
    "size of a word": (lambda d: sf.STPM(image_size="big").fit(IMAGE), "image_size"),
    "an unknown layer": (lambda d: sf.STPM(layers=["layer9"], device="cpu").fit([IMAGE] * 4), "layer9"),
    "levels of two sizes": (lambda d: ops.pyramid_distance([LEVEL], [LEVEL[..., :2]]), "teacher"),
    "no levels": (lambda d: ops.anomaly_map([], [], (8, 8)), "student"),
    "map of size 0": (lambda d: ops.anomaly_map([LEVEL], [LEVEL], (0, 8)), "size"),
    "scores and labels": (lambda d: metrics.auroc([0.1, 0.2], [1]), "shape"),
    "NaN scores": (lambda d: metrics.auroc([0.1, float("nan")], [0, 1]), "finite"),
    "labels of 2": (lambda d: metrics.auroc([0.1, 0.2], [0, 2]), "labels"),
    "masks of another size": (lambda d: metrics.aupro(torch.ones(1, 4, 4), torch.ones(1, 5, 5)), "masks"),
    "limit 0": (lambda d: metrics.aupro(torch.ones(1, 4, 4), torch.ones(1, 4, 4), limit=0.0), "limit"),
    "threshold 0": (lambda d: heatmap(torch.ones(4, 4), 0.0), "threshold"),
    "picture of two channels": (lambda d: overlay(np.ones((4, 4, 2)), torch.ones(4, 4), 1.0), "image"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS.keys())
def test_wrong_calls(call, words, world):
    with pytest.raises(StadfastError) as caught:
        call(sf.load(world.model, device="cpu"))
    assert words in str(caught.value)


# ---------------------------------------- real processes

PROCESSES = {
    "score odd image": (1, "odd.png", ["score", "MODEL", "odd.png"]),
    "load odd model": (1, "odd.png", ["info", "odd.png"]),
    "fit nothing": (1, "nowhere", ["fit", "nowhere", "-o", "m"]),
    "no arguments": (2, "Usage", ["fit"]),
}


@pytest.mark.parametrize(("code", "words", "command"), PROCESSES.values(), ids=PROCESSES.keys())
def test_real_processes(code, words, command, world, tmp_path):
    (tmp_path / "odd.png").write_bytes(b"odd")
    arguments = [str(world.model) if word == "MODEL" else word for word in command]
    environment = {
        "PYTHONPATH": str(Path(sf.__file__).parents[1]),
        "PATH": "/usr/bin:/bin",
        "HOME": str(Path.home()),
    }
    result = subprocess.run(
        [sys.executable, "-m", "stadfast", *arguments],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def check_cli(code, words, *arguments):
    """Run the command line; it must end with ``code`` (None: 1 or 2) and a message with ``words``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in ((1, 2) if code is None else (code,)), result.stderr
    assert "Traceback" not in result.stderr
    assert "run with --debug" not in result.stderr, result.stderr  # an error that nobody foresaw
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(("stadfast: error: ", "Error: ")), message
    assert words in message, message
    return message
