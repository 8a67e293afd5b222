"""One job from images to a folder of scores: planned once, run by an engine, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._progress import progress
from ..errors import BundleError, StadfastError, UsageError
from ..runtime import read_metadata
from .engines import ENGINES, Cluster, run_here, run_on_ray
from .results import LabelledCounts, Report, report_of, scores_file, state_file
from .sources import Location, Plan, Sources, plan
from .store import Store, needed, read_bytes
from .worker import Job, model_file

PART_SIZE = 512
_PLAN = "_plan.json"


@dataclass(frozen=True)
class Summary:
    """What came of a job, earlier runs of it included.

    Attributes:
        output: the folder of the scores.
        images, defective, broken: counts; ``broken`` ones have an error instead of a score.
        parts: files of scores.
        done_before: parts that an earlier run had finished.
        bytes_read: of image files and masks.
        seconds: wall time of this run.
        read_s, score_s, other_s: the workers' seconds, summed over all parts.
        memory_mb: by part, in order: what its worker's process held in memory at its end (10^6 bytes).
    """

    output: str
    images: int
    defective: int
    broken: int
    parts: int
    done_before: int
    bytes_read: int
    seconds: float
    read_s: float
    score_s: float
    other_s: float
    memory_mb: list[float]


class Evaluated(NamedTuple):
    """What :func:`evaluate` found.

    Attributes:
        figures: a dict that ``json`` can write, as that of :func:`stadfast.evaluate`, with ``bounds``.
        summary: what came of the job.
    """

    figures: dict[str, Any]
    summary: Summary


def score(
    model: Location,
    sources: Sources,
    output: Location,
    *,
    engine: str = "local",
    cluster: Cluster | None = None,
    heatmaps: Location | None = None,
    resume: bool = False,
    part_size: int = PART_SIZE,
    batch_size: int = 16,
    precision: str = "auto",
    device: str = "auto",
    readers: int = 2,
    threads: int | None = None,
    labelled: bool = False,
    native_scale: bool | None = None,
    show_progress: bool = True,
) -> Summary:
    """Score any number of images with a :class:`~stadfast.runtime.Scorer`, and write Parquet files.

    Each part of the images gives one file, ``part-000000.parquet`` and so on, with the columns ``path``, ``score``
    (float32), ``defective``, ``error`` (of an unreadable image, which has no score), ``label`` and ``defect``.
    Both engines, and a resumed run, give the same bits: the batches are the same. That presumes workers of one kind of
    processor, one version of torch, and for ``engine="local"`` the same ``threads`` as the actors' ``cpus`` (with
    networks whose kernels add up in another order with another number of threads).

    Args:
        model: a detector's bundle or an archive in one file; path or URL.
        sources: paths or URLs of images, folders of images, Parquet tables, or one of these; or labelled samples.
        output: the folder of the scores, path or URL.
        engine: ``"local"`` or ``"ray"``.
        cluster: for Ray.
        heatmaps: a folder, path or URL, for pictures of the anomalous images.
        resume: go on with a job of the same model, images and options; only missing parts are scored.
        part_size: images a part, the unit of work and of resume.
        batch_size: images computed at once.
        precision: of the networks, see ``Scorer``.
        device: see ``Scorer``; with Ray it follows from the actors' GPUs, and ``"cpu"`` means none.
        readers: threads of each worker that read and decode.
        threads: of torch, for ``engine="local"``.
        labelled: count for the metrics, too: see :func:`evaluate`.
        native_scale: the workers resize the images, whatever the detector; so None refuses one that was fitted at
            native scale, whose threshold is not for resized images, False takes it all the same, and True is refused.
        show_progress: on standard error.

    Raises:
        UsageError: an argument does not fit, the output has another job, or a package is missing.
        DataError: no images. BundleError: not a model.
    """
    if native_scale:
        raise UsageError("native_scale: expected None or False, as the workers resize the images; got True")
    _check(engine, part_size=part_size, batch_size=batch_size, readers=readers)
    needed("pyarrow.parquet", "Parquet")
    began = time.perf_counter()
    name, contents = _file_name(model), _contents(model)
    header = _header(model, contents)  # a damaged one is found before anything starts
    facts = header.get("training", header)  # a bundle's, or an archive's
    if facts.get("native_scale") and native_scale is None:
        raise UsageError(
            f"{os.fspath(model)} was fitted at native scale, and the workers resize the images, to which its threshold "
            "does not apply; native_scale=False takes it all the same"
        )
    planned = plan(sources, part_size)
    job = Job(
        model_name=name, model=contents, output=Store(output).location,
        heatmaps=None if heatmaps is None else Store(heatmaps).location, root=planned.root, labelled=labelled,
        batch_size=batch_size, precision=precision, device=device, readers=readers, threads=threads,
    )  # fmt: skip
    store = Store(output)
    names = _take_over(store, _identity(job, planned, part_size), resume)
    reports = _finished(store, names, planned, labelled)
    missing = [part for part in planned.parts if part.number not in reports]
    before = len(reports)
    scored = sum(report.images for report in reports.values())
    with progress("scoring", planned.images, done=scored, show=show_progress) as shown:
        for report in _running(job, missing, engine, cluster or Cluster()):
            reports[report.number] = report
            shown.advance(report.images)
    return _summary(
        store.location, [reports[n] for n in sorted(reports)], before, time.perf_counter() - began
    )


def evaluate(model: Location, sources: Sources, output: Location, **options: Any) -> Evaluated:
    """Score labelled images as :func:`score` does, and sum up the metrics that each part has counted.

    The metrics are those of ``metrics.evaluate(..., exact=False)``: counted by 16-bit keys, with a bound for each
    figure of pixels; the image figures are exact. The result is the same for all engines, workers and their order.

    Args:
        model: see :func:`score`.
        sources: labelled samples, or tables with a column ``label``.
        output: see :func:`score`.
        options: those of :func:`score`.

    Returns:
        the figures, and the summary.

    Raises:
        StadfastError: those of :func:`score`, or a damaged file of an earlier run.
    """
    summary = score(model, sources, output, labelled=True, **options)
    counts, store = LabelledCounts(), Store(output)
    for number in range(summary.parts):  # in order: sums of floating-point shares depend on it
        try:
            counts.add(store.read(state_file(number)))
        except Exception as error:  # numpy's and zipfile's, or the store's
            raise StadfastError(
                f"{store.location}/{state_file(number)} is damaged or gone: once gone, resume=True scores its part anew"
            ) from error
    return Evaluated(counts.figures(_header(model, _contents(model))), summary)


def _check(engine: str, **numbers: int) -> None:
    if engine not in ENGINES:
        raise UsageError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name}: expected a number from 1, got {value!r}")


def _running(job: Job, missing: Sequence[Any], engine: str, cluster: Cluster) -> Iterator[Report]:
    if not missing:
        return iter(())
    return run_on_ray(job, missing, cluster) if engine == "ray" else run_here(job, missing)


def _identity(job: Job, planned: Plan, part_size: int) -> dict[str, Any]:
    """What must be the same for parts of two runs to belong together."""
    return {
        "model": hashlib.sha256(job.model).hexdigest()[:16], "images": planned.images,
        "fingerprint": planned.fingerprint, "part_size": part_size, "batch_size": job.batch_size,
        "precision": job.precision, "labelled": job.labelled, "heatmaps": job.heatmaps is not None,
    }  # fmt: skip


def _take_over(store: Store, identity: Mapping[str, Any], resume: bool) -> set[str]:
    """The files of an earlier run that are kept; the plan is written where there was none.

    A plan without a part is no run, but one that failed at its start: over an argument, say.

    Raises:
        UsageError: there is an earlier run, but of another job, or it is not to be resumed.
        StadfastError: its plan is damaged.
    """
    names = store.names()
    if _PLAN not in names or not any(name.startswith("part-") for name in names):
        store.write(_PLAN, json.dumps(identity, indent=1).encode())
        return set()
    if not resume:
        raise UsageError(
            f"output: {store.location} holds an earlier run: resume=True goes on with it, or choose another folder"
        )
    try:
        theirs = dict(json.loads(store.read(_PLAN)))
    except (ValueError, TypeError) as error:
        raise StadfastError(
            f"{store.location}/{_PLAN} is damaged, so that nobody knows whose parts these are: choose another folder"
        ) from error
    for name, ours in identity.items():
        if theirs.get(name) != ours:
            raise UsageError(
                f"output: {store.location} holds another job: its {name} is {theirs.get(name)!r}, now it is {ours!r}"
            )
    return names


def _finished(store: Store, names: Set[str], planned: Plan, labelled: bool) -> dict[int, Report]:
    """Reports of the parts whose files are all there, and whole."""
    found = {}
    for number in (part.number for part in planned.parts):
        if scores_file(number) in names and (not labelled or state_file(number) in names):
            found[number] = report_of(store.read(scores_file(number)))
    return {number: report for number, report in found.items() if report is not None}


def _file_name(model: Location) -> str:
    name = os.fspath(model).rstrip("/").rpartition("/")[2]
    if name.lower().endswith(".xml"):
        raise UsageError(
            f"{name} is an archive of two files; wanted one file, such as .safetensors, .pt or .onnx"
        )
    return name


def _contents(model: Location) -> bytes:
    try:
        return read_bytes(os.fspath(model))
    except OSError as error:
        raise BundleError(f"{os.fspath(model)}: {error.strerror or error}") from error


def _header(model: Location, contents: bytes) -> dict[str, Any]:
    """The bundle's or the archive's word on thresholds and notes."""
    from ..methods.bundle import is_bundle, read_tensors

    with model_file(_file_name(model), contents, os.fspath(model)) as path:
        return read_tensors(path)[1] if is_bundle(path) else read_metadata(path)


def _summary(output: str, reports: Sequence[Report], before: int, seconds: float) -> Summary:
    def total(name: str) -> Any:
        return sum(getattr(report, name) for report in reports)

    summed = ("images", "defective", "broken", "bytes_read", "read_s", "score_s", "other_s")
    return Summary(
        output=output, parts=len(reports), done_before=before, seconds=seconds,
        memory_mb=[round(report.memory_mb, 1) for report in reports], **{name: total(name) for name in summed},
    )  # fmt: skip
