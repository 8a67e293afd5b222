import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from stadfast import metrics
from stadfast.errors import StadfastError, UsageError
from stadfast.report import Record, write_report
from stadfast.report.html import figure
from stadfast.report.records import choose_examples

THRESHOLD = 1e-3
NASTY = "<script>alert(1)<>&\"'.png"


def make_records(folder, count=12, size=(24, 32), name="{}.png"):
    generator = torch.Generator().manual_seed(0)
    records = []
    for index in range(count):
        path = folder / name.format(index)
        Image.effect_noise((size[1] * 2, size[0] * 2), 40).save(path)
        label = index % 2
        values = torch.rand(size, generator=generator) * THRESHOLD * 0.9
        mask = torch.zeros(size, dtype=torch.bool)
        if label:
            mask[4:9, 4 + index % 3 : 12] = True
            values[mask] *= 0.5 if index == 1 else 30
        defect = (None, "hole", None, "scratch")[index % 4]
        records.append(Record(path, label, defect, float(values.max()), values, mask if label else None))
    return records


def evaluate(records, **options):
    evaluation = metrics.evaluate(
        [r.map for r in records], [r.mask for r in records], [r.label for r in records], None,
        [r.defect for r in records], **options,
    )  # fmt: skip
    return evaluation | {"threshold": THRESHOLD}


@pytest.fixture
def records(tmp_path):
    return make_records(tmp_path)


INFO = {
    "method": "STPM",
    "backbone": "resnet18",
    "image_size": (24, 32),
    "seed": 0,
    "versions": {"torch": "2"},
}


class Tags(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "data")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_complete_in_itself(tmp_path, records):
    path = tmp_path / "out" / "report.html"
    write_report(path, evaluate(records), records, INFO, title="bottle", warnings=["one file was left out"])
    page = Tags(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.addresses) > 20
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"url\(|@import", path.read_text())
    words = (
        "bottle",
        "STPM · resnet18 · 24×32 px",
        "5 of 6",
        "0 of 6",
        "ROC curve",
        "PRO curve",
        "connectivity",
    )
    sections = "hole", "scratch", "defect missed", "Worst", "Borderline", "Best", "one file was left out"
    for word in words + sections:
        assert word in page.text, word


def test_hostile_names_are_text(tmp_path):
    records = make_records(tmp_path, 4, name="{}" + NASTY.replace("/", ""))
    path = tmp_path / "report.html"
    write_report(path, evaluate(records), records, INFO | {NASTY: NASTY}, title=NASTY, warnings=[NASTY])
    page = Tags(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)") >= 6


def test_good_images_only_and_missing_masks_still_give_a_report(tmp_path, records):
    good = [r for r in records if not r.label]
    unmasked = [Record(r.image, r.label, r.defect, r.score, r.map) for r in records]
    for name, chosen in (("good", good), ("unmasked", unmasked)):
        evaluation = evaluate(chosen)
        write_report(tmp_path / f"{name}.html", evaluation, chosen, INFO)
        text = Tags((tmp_path / f"{name}.html").read_text()).text
        assert "n/a" in text
        assert "nan" not in text.lower().replace("finance", "")
    assert "No defective test images" in Tags((tmp_path / "good.html").read_text()).text


def test_nothing_is_left_behind_when_the_report_cannot_be_made(tmp_path, records):
    evaluation = evaluate(records)
    records[1].image.unlink()
    with pytest.raises(StadfastError, match=re.escape(records[1].image.name)):
        write_report(tmp_path / "report.html", evaluation, records, INFO)
    assert not list(tmp_path.glob("*report.html*"))


def test_missing_arguments_are_named(tmp_path, records):
    with pytest.raises(UsageError, match="records"):
        write_report(tmp_path / "r.html", evaluate(records), [], INFO)
    with pytest.raises(UsageError, match="threshold"):
        write_report(tmp_path / "r.html", {}, records, INFO)


@pytest.mark.parametrize("name", ["threshold", "pixel_threshold"])
@pytest.mark.parametrize("threshold", [0, -1.0, float("nan"), float("inf")])
def test_a_threshold_without_a_logarithm_is_refused(tmp_path, records, name, threshold):
    with pytest.raises(UsageError, match=f"^{name} must be a positive number"):
        write_report(tmp_path / "r.html", evaluate(records) | {name: threshold}, records, INFO)


def test_the_limit_is_the_evaluations(tmp_path, records):
    write_report(tmp_path / "r.html", evaluate(records, limits=[0.1]), records, INFO)
    text = (tmp_path / "r.html").read_text()
    assert re.search(r'AUPRO@0\.1</div><div class="value">\d\.\d{4}<', text)
    assert text.count("AUPRO@") == text.count("AUPRO@0.1") == 3  # beside the figure, the curve and the types


def test_examples_are_the_worst_the_borderline_and_the_clearest(tmp_path):
    def record(name, label, ratio, defect=None):
        return Record(tmp_path / name, label, defect, ratio * THRESHOLD, torch.zeros(1, 1))

    records = [
        record("missed", 1, 0.01, "hole"), record("alarm", 0, 20), record("near", 1, 1.05, "hole"),
        record("below", 0, 0.9), record("clear-hole", 1, 500, "hole"), record("clearer-hole", 1, 900, "hole"),
        record("clear-stain", 1, 50, "stain"), record("calm", 0, 1e-4), record("zero", 0, 0.0),
    ]  # fmt: skip
    chosen = {
        key: [r.image.name for r in value] for key, value in choose_examples(records, THRESHOLD, 2).items()
    }
    assert chosen["worst"] == ["missed", "alarm"]
    assert chosen["borderline"] == ["near", "below"]
    assert set(chosen["best"]) <= {"zero", "clearer-hole", "clear-stain"}
    everything = choose_examples(records, THRESHOLD, 9)
    names = [r.image.name for value in everything.values() for r in value]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_enough(tmp_path, count):
    records = make_records(tmp_path, count)
    write_report(tmp_path / "r.html", evaluate(records), records, INFO)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.99996, "0.9999"), (1.0, "1.0000"), (0.95, "0.9500"), (None, "n/a"), (float("nan"), "n/a")],
)
def test_figures_are_never_rounded_up(value, text):
    assert figure(value) == text


def test_the_verdict_is_by_the_image_threshold_and_the_heat_map_by_the_pixels(tmp_path, records):
    thresholds = {
        "threshold": 0.4,
        "pixel_threshold": 3.0,
    }  # as mkd's, whose image score is a loss of its own
    scored = [replace(record, score=0.5 if record.label else 0.3) for record in records]
    write_report(tmp_path / "r.html", evaluate(scored) | thresholds, scored, INFO)
    text = Tags((tmp_path / "r.html").read_text()).text
    assert ("6 of 6" in text, "0 of 6" in text) == (True, True)
    assert ("defect found" in text, "1.2 × threshold" in text) == (True, True)
    assert "defect missed" not in text
