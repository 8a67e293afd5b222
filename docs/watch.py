"""Makes docs/watch.png: ``stadfast watch`` on generated material, a real detector, in a headless browser.

Needs Chromium. From the repository's root: ``python docs/watch.py`` (some minutes), or, with the detector that
``stadfast demo`` has made, ``python docs/watch.py demo-output/model.safetensors``.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

from stadfast import STPM, load
from stadfast.data import MVTecLayout, write_material
from stadfast.linescan import Inspector, OperatorPage
from stadfast.linescan.sources import GeneratedWeb, Paced

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "watch.png"
WIDTH, LINE_RATE, PITCH_MM = 384, 300.0, 0.25
FIRST = 1 << 29  # a stretch of the material that the detector has not seen


def browsers():
    """tests/linescan/browser.py"""
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests" / "linescan" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detector(folder: Path) -> STPM:
    """The detector of ``stadfast demo``."""
    write_material(folder, "woven", (256, 256), train=120, test_good=1, test_per_defect=1)
    return STPM("efficientnet_lite0", image_size=(128, 128), epochs=20, batch_size=8, seed=0).fit(
        MVTecLayout(folder)
    )


def main(fitted: Path | None) -> None:
    tools = browsers()
    with tempfile.TemporaryDirectory() as folder:
        model = load(fitted, device="cpu") if fitted else detector(Path(folder))
    web = GeneratedWeb("woven", WIDTH, first=FIRST, defect_rate=10)
    page = OperatorPage(0)
    inspector = Inspector(
        model, Paced(web, LINE_RATE), [page], downscale=2, pixel_pitch=PITCH_MM, min_area=20, merge_distance=8
    )
    thread = threading.Thread(target=inspector.run)
    thread.start()
    try:
        with tools.Browser(tools.find(), (1040, 720)) as browser:
            while not page.port:
                pass
            browser.open(page.url)
            browser.wait("strip.head && strip.head.rows === strip.head.most_rows && defects.size > 4")
            browser.wait("page.status && page.status.delay < 2 && now() - page.statusAt < 0.5")
            newest = "strip.head.segments.at(-1)[3]"
            browser.wait(
                f"[...defects.values()].filter(({{record}}) => record.lines[0] > {newest} - 260).length > 2"
            )
            browser.wait("[...document.images].every((image) => image.complete)")
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    finally:
        inspector.stop()
        thread.join()
    colours = picture.quantize(64, kmeans=2, dither=Image.Dither.NONE)  # small enough to keep in a repository
    colours.save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
