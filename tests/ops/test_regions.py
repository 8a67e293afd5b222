"""label_regions and region_pixels against scipy and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label

from stadfast import ops
from stadfast.errors import UsageError
from stadfast.ops import reference_metrics
from stadfast.ops.regions import gather_region_histogram, gather_region_pixels

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def expected(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = [label(mask, structure=np.ones((3, 3))) for mask in masks.cpu().numpy()]
    labels = np.stack([one for one, _ in found]) if found else np.zeros(masks.shape, np.int32)
    return torch.from_numpy(labels.astype(np.int32)), torch.tensor(
        [count for _, count in found], dtype=torch.int64
    )


def snake(height: int, width: int) -> torch.Tensor:
    """One region that winds through the whole image, a pixel wide."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


def spiral(size: int) -> torch.Tensor:
    """Two nested spirals, which meet the scan many times before they join."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    low, high = 0, size - 1
    while low < high:
        mask[low, low : high + 1] = mask[low : high + 1, high] = mask[high, low : high + 1] = True
        mask[low + 2 : high + 1, low] = True
        if low + 2 <= high:
            mask[low + 2, low + 1] = True
        low, high = low + 2, high - 2
    return mask


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.6, 1.0])
@pytest.mark.parametrize(
    "shape", [(3, 40, 33), (2, 1, 1), (0, 4, 4), (2, 64, 7), (1, 5, 0), (1, 1, 130), (2, 130, 1)]
)
def test_labels_are_scipys(device: str, shape: tuple[int, int, int], share: float) -> None:
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    labels, counts = ops.label_regions(masks.to(device))
    assert (labels.dtype, counts.dtype) == (torch.int32, torch.int64)
    wanted = expected(masks)
    assert torch.equal(labels.cpu(), wanted[0])
    assert torch.equal(counts.cpu(), wanted[1])
    for got, reference in zip((labels, counts), reference_metrics.label_regions(masks), strict=True):
        assert torch.equal(got.cpu(), reference)


@pytest.mark.parametrize("device", DEVICES)
def test_long_thin_regions_stay_whole(device: str) -> None:
    for mask in (snake(33, 65), snake(301, 260), spiral(200)):
        labels, counts = ops.label_regions(mask[None].to(device))
        assert counts.item() == expected(mask[None])[1].item()
        assert torch.equal(labels.cpu(), expected(mask[None])[0])
    assert ops.label_regions(snake(301, 260)[None].to(device))[1].item() == 1


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=20)))
def test_any_mask(masks: np.ndarray) -> None:
    tensor = torch.from_numpy(masks)
    for got, wanted in zip(ops.label_regions(tensor), expected(tensor), strict=True):
        assert torch.equal(got, wanted)


def test_strided_masks_and_bytes_other_than_one() -> None:
    masks = torch.rand(4, 30, 40, generator=torch.Generator().manual_seed(1)) < 0.4
    strided = masks[::2, ::3, ::2]
    assert torch.equal(ops.label_regions(strided)[0], expected(strided.contiguous())[0])
    bytes_of_255 = (masks.to(torch.uint8) * 255).view(torch.bool)
    assert torch.equal(ops.label_regions(bytes_of_255)[0], expected(masks)[0])


def test_threads_do_not_change_labels() -> None:
    masks = torch.rand(9, 50, 61, generator=torch.Generator().manual_seed(2)) < 0.5
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.label_regions(masks)[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, results[0]) for one in results)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_region_pixels_are_those_of_the_labels(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = [(20, 31), (1, 1), (40, 8), (20, 31)]
    maps = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    masks = [(torch.rand(size, generator=generator) < 0.4).to(device) for size in sizes]
    masks[1][:] = False
    for some in (slice(None), slice(0, 4, 3)):  # of several sizes, and of one
        scores, regions, areas, counts = ops.region_pixels(maps[some], masks[some])
        labels = [expected(mask[None])[0][0] for mask in masks[some]]
        assert torch.equal(
            scores, torch.cat([image[mask] for image, mask in zip(maps[some], masks[some], strict=True)])
        )
        assert counts.tolist() == [int(image.max()) for image in labels]
        assert torch.equal(areas, torch.bincount(regions, minlength=len(areas)))
        first = counts.cumsum(0) - counts
        wanted = [image[mask.cpu()] - 1 + before for image, mask, before in
                  zip(labels, masks[some], first.cpu(), strict=True)]  # fmt: skip
        assert torch.equal(regions.cpu(), torch.cat(wanted).to(torch.int32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_region_histogram_is_that_of_the_pixels(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = [(20, 31), (1, 1), (3, 2500), (20, 31)]
    maps = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    masks = [(torch.rand(size, generator=generator) < 0.6).to(device) for size in sizes]
    masks[1][:], masks[2][:] = False, True  # a run longer than a block of keys
    maps[3], masks[3] = maps[3].mT, masks[3].mT
    pixels, overlap, counts = ops.region_histogram(maps, masks)
    wanted = gather_region_histogram(maps, masks)
    assert torch.equal(pixels, wanted[0])
    torch.testing.assert_close(overlap, wanted[1], rtol=1e-14, atol=0)
    assert torch.equal(counts, wanted[2])
    assert pixels.sum() == sum(mask.sum() for mask in masks)
    assert overlap.sum().item() == pytest.approx(counts.sum().item(), abs=1e-9)


def test_threads_do_not_change_a_region_histogram() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = list(torch.randn(9, 500, 300, generator=generator))
    masks = list(torch.rand(9, 500, 300, generator=generator) < 0.3)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.region_histogram(maps, masks)[1])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, results[0]) for one in results)


def test_region_pixels_reads_strided_maps() -> None:
    maps, masks = torch.randn(3, 20, 30), torch.rand(3, 20, 30) < 0.3
    got = ops.region_pixels(list(maps.mT), list(masks.mT))
    wanted = gather_region_pixels(list(maps.mT.contiguous()), list(masks.mT.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.skipif(ops.backend().name == "reference", reason="needs the compiled kernels")
def test_opcheck() -> None:
    masks = torch.rand(2, 9, 8) < 0.5
    torch.library.opcheck(torch.ops.stadfast.label_regions, (masks,))
    for op in (torch.ops.stadfast.region_pixels, torch.ops.stadfast.region_histogram):
        torch.library.opcheck(op, (list(torch.randn(2, 9, 8)), list(masks)))


def test_wrong_arguments_are_named() -> None:
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"masks: expected \(B, H, W\) bool, got \(2, 4, 5\) torch.uint8"):
        ops.label_regions(masks.to(torch.uint8))
    with pytest.raises(UsageError, match=r"masks\[1\]: expected bool \(4, 6\)"):
        ops.region_pixels([torch.zeros(4, 5), torch.zeros(4, 6)], list(masks))
    with pytest.raises(UsageError, match="expected one per map and at least one, got 0 and 2"):
        ops.region_pixels([], list(masks))
    with pytest.raises(UsageError, match=r"maps\[1\]: expected a floating-point dtype"):
        ops.region_pixels([torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.int32)], list(masks))
    with pytest.raises(UsageError, match=r"float32, float16 or bfloat16, got torch\.float64"):
        ops.region_histogram(list(torch.zeros(2, 4, 5).double()), list(masks))
