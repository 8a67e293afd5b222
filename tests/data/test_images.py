from __future__ import annotations

import importlib.util
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stadfast.data import Sample, UnreadableImageError, as_images, read_image, read_mask, to_float
from stadfast.errors import DataError

_spec = importlib.util.spec_from_file_location("data_files", Path(__file__).with_name("files.py"))
assert _spec is not None
assert _spec.loader is not None
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
DEEP = rng.integers(0, 65536, (6, 9, 4), dtype=np.uint16)


def chw(array: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, 3) -> (3, H, W)."""
    array = array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


class TestReadImage:
    @pytest.mark.parametrize("extension", ["png", "bmp", "tif", "TIFF", "webp"])
    def test_lossless_rgb_is_exact(self, tmp_path: Path, extension: str) -> None:
        options = {"lossless": True} if extension == "webp" else {}
        image = read_image(save(tmp_path / f"a.{extension}", RGB, **options))
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert torch.equal(image, chw(RGB))

    def test_jpeg_is_close(self, tmp_path: Path) -> None:
        flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
        image = read_image(save(tmp_path / "a.jpg", flat, quality=95))
        assert (image.int() - chw(flat).int()).abs().max() <= 3

    @pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp"])
    def test_grey_has_three_equal_channels(self, tmp_path: Path, extension: str) -> None:
        image = read_image(save(tmp_path / f"a.{extension}", GREY))
        assert image.shape == (3, 6, 9)
        assert torch.equal(image[0], image[2])
        if extension != "jpg":
            assert torch.equal(image, chw(GREY))

    @pytest.mark.parametrize(
        ("mode", "extension"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "tif")]
    )
    def test_modes(self, tmp_path: Path, mode: str, extension: str) -> None:
        path = save(tmp_path / f"a.{extension}", RGB, mode)
        wanted = np.array(Image.fromarray(RGB).convert(mode).convert("RGB"))
        assert torch.equal(read_image(path), chw(wanted))

    def test_alpha_is_dropped_not_blended(self, tmp_path: Path) -> None:
        rgba = np.dstack([RGB, np.zeros_like(GREY)])
        assert torch.equal(read_image(save(tmp_path / "a.png", rgba)), chw(RGB))

    def test_transparent_palette(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.png", RGB, "P", transparency=0)
        assert torch.equal(read_image(path), chw(np.array(Image.fromarray(RGB).convert("P").convert("RGB"))))

    def test_cmyk_jpeg_keeps_its_colours(self, tmp_path: Path) -> None:
        flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
        image = read_image(save(tmp_path / "a.jpg", flat, "CMYK", quality=95))
        assert (image.int() - chw(flat).int()).abs().max() <= 8

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_png_keeps_16_bits(self, tmp_path: Path, channels: int) -> None:
        image = read_image(files.png16(tmp_path / "a.png", DEEP[..., :channels]))
        colours = DEEP[..., :3] if channels > 2 else DEEP[..., 0]
        assert image.dtype == torch.float32
        assert torch.equal(image, chw((colours.astype(np.float64) / 65535).astype(np.float32)))

    def test_without_torchvisions_decoder_16_bit_colour_gives_the_upper_8(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("torchvision.io.decode_image")
        path = files.png16(tmp_path / "a.png", DEEP[..., :3])
        with pytest.warns(UserWarning, match=r"a\.png: .* upper 8 of its 16 bits"):
            assert torch.equal(read_image(path), chw((DEEP[..., :3] >> 8).astype(np.uint8)))
        assert read_image(files.png16(tmp_path / "b.png", DEEP[..., :1])).dtype == torch.float32

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_grey_tiff_keeps_16_bits(self, tmp_path: Path, order: str) -> None:
        grey = DEEP[..., 0]
        mode = "I;16" if order == "<" else "I;16B"
        Image.frombytes(mode, (9, 6), grey.astype(f"{order}u2").tobytes()).save(tmp_path / "a.tif")
        image = read_image(tmp_path / "a.tif")
        assert torch.equal(image, chw((grey.astype(np.float64) / 65535).astype(np.float32)))

    def test_rgb_tiff_of_16_bits_gives_the_upper_8(self, tmp_path: Path) -> None:
        image = read_image(files.tiff16_rgb(tmp_path / "a.tif", DEEP[..., :3]))
        assert image.dtype == torch.uint8
        assert torch.equal(image, chw((DEEP[..., :3] >> 8).astype(np.uint8)))

    def test_32_bit_integers_count_as_16(self, tmp_path: Path) -> None:
        image = read_image(save(tmp_path / "a.tif", DEEP[..., 0].astype(np.int32)))
        assert torch.equal(image, chw((DEEP[..., 0].astype(np.float64) / 65535).astype(np.float32)))
        with pytest.raises(UnreadableImageError, match=r"b\.tif: 32-bit integers from 70000 to 70000"):
            read_image(save(tmp_path / "b.tif", np.full((4, 4), 70000, np.int32)))

    def test_float_tiff(self, tmp_path: Path) -> None:
        grey = rng.random((6, 9), dtype=np.float32)
        assert torch.equal(read_image(save(tmp_path / "a.tif", grey)), chw(grey))

    @pytest.mark.parametrize("orientation", range(1, 10))
    @pytest.mark.parametrize("extension", ["png", "tif", "webp"])
    def test_exif_orientation(self, tmp_path: Path, orientation: int, extension: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if extension == "webp" else {}
        path = save(tmp_path / f"a.{extension}", RGB, exif=exif, **options)
        turned = {
            2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
            6: RGB.transpose(1, 0, 2)[:, ::-1], 7: RGB[::-1, ::-1].transpose(1, 0, 2),
            8: RGB.transpose(1, 0, 2)[::-1],
        }.get(orientation, RGB)  # fmt: skip
        assert torch.equal(read_image(path), chw(turned))
        assert torch.equal(as_images(Image.open(path))[0], chw(turned))

    def test_exif_orientation_of_16_bit_png(self, tmp_path: Path) -> None:
        path = files.png16(tmp_path / "a.png", DEEP[..., :3], orientation=6)
        turned = DEEP[..., :3].transpose(1, 0, 2)[:, ::-1].astype(np.float64) / 65535
        assert torch.equal(read_image(path), chw(turned.astype(np.float32)))

    @pytest.mark.parametrize("extension", ["png", "tif", "webp", "gif"])
    def test_first_frame_of_an_animation(self, tmp_path: Path, extension: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
        options = {"lossless": True} if extension == "webp" else {}
        path = tmp_path / f"a.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert read_image(path)[:, 4, 4].tolist() == [255, 0, 0]

    def test_one_pixel(self, tmp_path: Path) -> None:
        assert read_image(save(tmp_path / "a.png", RGB[:1, :1])).shape == (3, 1, 1)

    def test_accepts_str(self, tmp_path: Path) -> None:
        assert read_image(str(save(tmp_path / "a.png", RGB))).shape == (3, 6, 9)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file, what the error must say)."""
    big = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = {}
    for extension in ("png", "jpg", "tif", "bmp", "webp"):
        whole = save(folder / f"whole.{extension}", big).read_bytes()
        (folder / f"cut.{extension}").write_bytes(whole[: len(whole) // 2])
        found[f"cut {extension}"] = (folder / f"cut.{extension}", "")
        (folder / f"stub.{extension}").write_bytes(whole[:7])
        reason = "damaged" if extension == "jpg" else "not an image"  # 7 bytes are enough to tell a JPEG
        found[f"stub {extension}"] = (folder / f"stub.{extension}", reason)
    deep = files.png16(folder / "deep.png", DEEP)
    (folder / "cut16.png").write_bytes(deep.read_bytes()[:-60])
    found["cut png16"] = (folder / "cut16.png", "damaged")
    (folder / "bits.png").write_bytes(save(folder / "w.png", big).read_bytes().replace(b"IDAT", b"IDAX"))
    found["no data"] = (folder / "bits.png", "")
    (folder / "zero.png").write_bytes(b"")
    found["zero bytes"] = (folder / "zero.png", "0 bytes")
    (folder / "text.png").write_text("this is no picture")
    found["text"] = (folder / "text.png", "not an image")
    found["size 0"] = (files.png_header(folder / "flat.png", 0, 5), "")
    found["bomb"] = (files.png_header(folder / "bomb.png", 30000, 30000), "too large")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        found[name] = (save(folder / f"{name}.tif", np.full((4, 4), value, np.float32)), "not finite")
    found["range"] = (save(folder / "range.tif", np.full((4, 4), 200, np.float32)), "divide by 255")
    found["missing"] = (folder / "missing.png", "no such file")
    (folder / "folder.png").mkdir()
    found["folder"] = (folder / "folder.png", "directory")
    return found


@pytest.mark.parametrize(
    "case",
    ["cut png", "cut jpg", "cut tif", "cut bmp", "cut webp", "stub png", "stub jpg", "stub tif", "stub bmp",
     "stub webp", "cut png16", "no data", "zero bytes", "text", "size 0", "bomb", "nan", "inf", "range",
     "missing", "folder"],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_broken_file_is_named(tmp_path: Path, case: str, read) -> None:  # type: ignore[no-untyped-def]
    path, reason = broken_files(tmp_path)[case]
    with pytest.raises(UnreadableImageError) as caught:
        read(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert str(path) not in caught.value.reason
    assert reason in caught.value.reason
    assert isinstance(caught.value, DataError)


def test_pillows_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", np.zeros((12, 10), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path).shape == (3, 12, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59)
    with pytest.raises(UnreadableImageError, match=r"a\.png: too large"):
        read_image(path)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bomb_warning_as_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", np.zeros((12, 10), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"a\.png: too large"):
        read_image(path)


def test_broken_exif_does_not_hide_the_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert torch.equal(read_image(path), chw(RGB))


def test_unreadable_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "why")))
    assert (str(error), error.path, error.reason) == ("a.png: why", Path("a.png"), "why")


class TestReadMask:
    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            ([0, 127, 128, 255], [0, 0, 1, 1]),
            ([0, 0, 1, 1], [0, 0, 1, 1]),
            ([0, 2, 1, 7], [0, 1, 1, 1]),
            ([0, 0, 0, 0], [0, 0, 0, 0]),
            ([255] * 4, [1] * 4),
            ([0, 1, 0, 255], [0, 0, 0, 1]),
        ],
    )
    @pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
    def test_8_bit(self, tmp_path: Path, values: list[int], wanted: list[int], extension: str) -> None:
        mask = read_mask(save(tmp_path / f"m.{extension}", np.array([values], np.uint8)))
        assert mask.dtype == torch.bool
        assert mask.tolist() == [[bool(v) for v in wanted]]

    @pytest.mark.parametrize(("high", "wanted"), [(65535, [0, 1, 1]), (32768, [0, 0, 1]), (255, [0, 1, 1])])
    def test_16_bit(self, tmp_path: Path, high: int, wanted: list[int]) -> None:
        values = {65535: [0, 40000, high], 32768: [0, 32767, high], 255: [0, 1, high]}[high]
        path = files.png16(tmp_path / "m.png", np.array([values], np.uint16)[..., None])
        assert read_mask(path).tolist() == [[bool(v) for v in wanted]]

    @pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA"])
    def test_modes(self, tmp_path: Path, mode: str) -> None:
        black_white = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
        assert read_mask(save(tmp_path / "m.png", black_white, mode)).equal(torch.from_numpy(black_white > 0))

    def test_float(self, tmp_path: Path) -> None:
        path = save(tmp_path / "m.tif", np.array([[0, 0.4, 0.6]], np.float32))
        assert read_mask(path).tolist() == [[False, False, True]]

    def test_dark_colours_of_a_label_palette_count(self, tmp_path: Path) -> None:
        colours = np.array([[[0, 0, 0], [128, 0, 0], [0, 0, 128]]], np.uint8)
        assert read_mask(save(tmp_path / "m.png", colours)).tolist() == [[False, True, True]]

    def test_noise_of_a_black_jpeg_is_no_defect(self, tmp_path: Path) -> None:
        noisy = rng.integers(0, 6, (32, 32), dtype=np.uint8)
        assert not read_mask(save(tmp_path / "m.jpg", noisy)).any()


class TestAsImages:
    def test_path_folder_and_lists(self, tmp_path: Path) -> None:
        b, a = save(tmp_path / "b.png", RGB), save(tmp_path / "a.png", 255 - RGB)
        assert torch.equal(as_images(b)[0], chw(RGB))
        assert [int(i[0, 0, 0]) for i in as_images(tmp_path)] == [255 - RGB[0, 0, 0], RGB[0, 0, 0]]
        for given in (
            [b, str(a)],
            (b, a),
            (p for p in (b, a)),
            [Sample(b), a],
            [Sample(b, 0), Sample(a, 1, "x")],
        ):
            assert torch.equal(torch.stack(as_images(given)), torch.stack([chw(RGB), chw(255 - RGB)]))

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
    def test_pillow_equals_the_file(self, mode: str) -> None:
        image = Image.fromarray(RGB).convert(mode)
        assert torch.equal(as_images(image)[0], chw(np.array(image.convert("RGB"))))

    def test_pillow_16_bit(self) -> None:
        image = Image.fromarray(DEEP[..., 0])
        assert torch.equal(as_images(image)[0], chw((DEEP[..., 0] / 65535).astype(np.float32)))

    @pytest.mark.parametrize(
        ("array", "wanted"),
        [
            (RGB, [chw(RGB)]),
            (GREY, [chw(GREY)]),
            (GREY[..., None], [chw(GREY)]),
            (np.dstack([RGB, GREY]), [chw(RGB)]),
            (np.stack([RGB, RGB[::-1]]), [chw(RGB), chw(RGB[::-1])]),
            (RGB[:, ::-1], [chw(RGB[:, ::-1])]),
            (DEEP[..., :3], [chw((DEEP[..., :3] / 65535).astype(np.float32))]),
            (DEEP[..., :3].astype(">u2"), [chw((DEEP[..., :3] / 65535).astype(np.float32))]),
            (RGB / 255, [chw(RGB).float() / 255]),
            ((RGB / 255).astype(np.float32), [chw(RGB).float() / 255]),
            (RGB.transpose(2, 0, 1), [chw(RGB)]),
            (np.stack([RGB, RGB[::-1]]).transpose(0, 3, 1, 2), [chw(RGB), chw(RGB[::-1])]),
            (RGB[:3].transpose(2, 0, 1)[..., :3], [chw(RGB[:3].transpose(2, 0, 1)[..., :3])]),
            (np.full((2, 2), 0.5, np.float16), [torch.full((3, 2, 2), 0.5)]),
            (np.full((2, 2), 1 + 1e-4), [torch.ones(3, 2, 2)]),
        ],
    )
    def test_arrays(self, array: np.ndarray, wanted: list[torch.Tensor]) -> None:
        images = as_images(array)
        assert [image.dtype for image in images] == [image.dtype for image in wanted]
        for image, want in zip(images, wanted, strict=True):
            torch.testing.assert_close(image, want, rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("tensor", "count"),
        [
            (chw(RGB), 1),
            (torch.from_numpy(GREY), 1),
            (torch.from_numpy(GREY)[None], 1),
            (chw(RGB)[None].repeat(5, 1, 1, 1), 5),
            (torch.from_numpy(GREY)[None, None].repeat(2, 1, 1, 1), 2),
            (torch.from_numpy(np.dstack([RGB, GREY])).permute(2, 0, 1), 1),
            (torch.from_numpy(RGB), 1),
            (torch.from_numpy(RGB)[None].repeat(2, 1, 1, 1), 2),
        ],
    )
    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
    )
    def test_tensors(self, tensor: torch.Tensor, count: int, dtype: torch.dtype) -> None:
        scale = 257 if dtype == torch.uint16 else 1 if dtype == torch.uint8 else 1 / 255
        given = (tensor.double() * scale).round(decimals=9).to(dtype)
        images = as_images(given)
        assert len(images) == count
        reference = chw(RGB) if {3, 4} & set(tensor.shape) else chw(GREY)
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 4e-3}.get(dtype, 1e-6)
        for image in images:
            assert image.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
            torch.testing.assert_close(to_float(image), to_float(reference), rtol=0, atol=tolerance)

    def test_uint8_batch_is_not_copied(self) -> None:
        batch = torch.zeros(4, 3, 5, 5, dtype=torch.uint8)
        assert as_images(batch)[1].data_ptr() == batch[1].data_ptr()
        array = np.zeros((4, 5, 5, 3), np.uint8)
        assert as_images(array)[0].data_ptr() == array.ctypes.data

    def test_read_only_and_strided_arrays(self) -> None:
        frozen = RGB.copy()
        frozen.flags.writeable = False
        for array in (frozen, RGB[::2, ::-2], np.asfortranarray(RGB)):
            assert torch.equal(as_images(array)[0], chw(array))

    def test_tensor_that_needs_grad_is_detached(self) -> None:
        assert not as_images(torch.rand(3, 4, 4, requires_grad=True))[0].requires_grad

    def test_lists_of_pictures_keep_their_order(self) -> None:
        images = as_images([RGB, chw(GREY), Image.fromarray(RGB), np.stack([RGB, RGB])])
        assert [torch.equal(image, chw(RGB)) for image in images] == [True, False, True, True, True]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ([], ["no images", "empty"]),
            ((), ["no images", "empty"]),
            (iter(()), ["no images", "empty"]),
            ({}, ["dict"]),
            ({"image": RGB}, ["dict"]),
            (None, ["NoneType", "wanted a path"]),
            (3, ["int", "wanted a path"]),
            ([None], ["image 0", "NoneType"]),
            ([[RGB]], ["image 0", "list"]),
            ([RGB, "a.png"], ["1 paths are mixed with 1 images"]),
            (["a.png", Image.fromarray(RGB)], ["mixed"]),
            ("nowhere.png", ["nowhere.png does not exist"]),
            (["nowhere"], ["nowhere does not exist"]),
            (np.zeros((0, 4, 4, 3), np.uint8), ["(0, 4, 4, 3)", "empty"]),
            (np.zeros((4, 0, 3), np.uint8), ["(4, 0, 3)", "empty"]),
            (np.zeros((0,), np.uint8), ["(0,)", "(H, W, C)"]),
            (np.zeros((), np.uint8), ["()", "(H, W, C)"]),
            (np.zeros(12, np.uint8), ["(12,)", "(H, W, C)"]),
            (np.zeros((5, 6, 2), np.uint8), ["(5, 6, 2)", "C = 1, 3 or 4"]),
            (np.zeros((7, 8, 9), np.uint8), ["array[..., None]"]),
            (np.zeros((1, 1, 1, 8, 3), np.uint8), ["(1, 1, 1, 8, 3)"]),
            (torch.zeros(7, 8, 9), ["tensor[:, None]"]),
            (torch.zeros(2, 8, 9), ["(2, 8, 9)", "C = 1, 3 or 4"]),
            (torch.zeros(1, 5, 8, 9), ["(1, 5, 8, 9)"]),
            (torch.zeros(0, 3, 8, 9), ["empty"]),
            (torch.zeros(5), ["(5,)"]),
            (np.zeros((4, 4), np.int64), ["int64", "uint8, uint16 or floats"]),
            (np.zeros((4, 4), bool), ["bool"]),
            (np.zeros((4, 4), complex), ["complex128"]),
            (np.array([["a"]]), ["<U1"]),
            (np.empty((2, 2), object), ["object"]),
            (torch.zeros(3, 4, 4, dtype=torch.int32), ["int32"]),
            (torch.zeros(3, 4, 4, dtype=torch.bool), ["bool"]),
            (torch.zeros(3, 4, 4, dtype=torch.complex64), ["complex64"]),
            (np.full((4, 4), np.nan), ["not finite"]),
            (np.full((4, 4), -np.inf), ["not finite"]),
            (torch.tensor([[0.0, float("nan")]]), ["not finite"]),
            (torch.tensor([[0.0, float("inf")]]).half(), ["not finite"]),
            (np.full((4, 4), 254.0), ["from 254 to 254", "[0, 1]", "divide by 255"]),
            (torch.tensor([[-2.1, 2.6]]), ["from -2.1 to 2.6", "normalisation"]),
            (np.full((4, 4), -900.0), ["from -900 to -900", "[0, 1]"]),
            ([RGB, np.full((4, 4), 2.0)], ["image 1", "from 2 to 2"]),
        ],
    )
    def test_refusals_say_what_came(self, given: object, words: list[str]) -> None:
        with pytest.raises(DataError) as caught:
            as_images(given)
        for word in words:
            assert word in str(caught.value)

    def test_damaged_pillow_image(self, tmp_path: Path) -> None:
        data = save(tmp_path / "a.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
        with pytest.raises(DataError, match="image 1: damaged"):
            as_images([RGB, Image.open(io.BytesIO(data[:3000]))])

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_tensors_stay_on_their_device(self) -> None:
        assert as_images(torch.rand(2, 3, 4, 4, device="cuda"))[0].is_cuda


def test_to_float() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    assert to_float(torch.tensor([0, 65535], dtype=torch.uint16)).tolist() == [0.0, 1.0]
    assert to_float(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32
