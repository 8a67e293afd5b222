"""The commands and their options. What they do lies in the modules beside, which load torch: not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import UsageError
from ._guard import guarded
from ._options import (
    FOR_JOBS,
    FOR_RAY,
    WITH_OUTPUT,
    Actors,
    Address,
    BatchSize,
    Cpus,
    Debug,
    Device,
    Engine,
    Gpus,
    Json,
    Model,
    NativeScale,
    NewModel,
    Output,
    PartSize,
    ResumeJob,
    SkipBroken,
    SkipBrokenHere,
    refuse,
)
from .linescan import stream, watch

app = typer.Typer(
    name="stadfast",
    help="Find defects in images of a product, having seen good ones only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The program ``stadfast``."""
    app(prog_name="stadfast")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stadfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def fit(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of good images, or a category in MVTec's layout.")
    ],
    output: NewModel,
    method: Annotated[
        str, typer.Option(metavar="stpm|et-stpm|mkd|rstpm|stereotype|msfi", help="The kind of detector.")
    ] = "stpm",
    backbone: Annotated[
        str | None, typer.Option(help="Backbone network, such as resnet18; default: the method's.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The teacher's weights: .pth or .safetensors; default: ImageNet's."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW", help="Images are resized to this height and width; default: the method's."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs; default: the method's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per training step; default: the method's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same detector.")] = 0,
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16", help="Precision of the training.")
    ] = "auto",
    device: Device = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other argument of the method, such as variant=paper."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    skip_broken: SkipBroken = False,
    native_scale: Annotated[
        bool,
        typer.Option(
            "--native-scale", help="Train on crops of the images as they are, for strips and large images."
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Use deterministic algorithms only, for results that are equal bit by bit.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Learn what good images look like."""
    from .fit import fit as run
    from .fit import parse_setting, parse_size

    options: dict[str, Any] = {
        "backbone": backbone, "weights": weights, "epochs": epochs, "batch_size": batch_size,
        "image_size": None if image_size is None else parse_size(image_size),
        "seed": seed, "precision": precision, "device": device, "deterministic": deterministic,
    }  # fmt: skip
    others = dict(map(parse_setting, settings or ()))
    for name in others.keys() & options.keys():
        raise UsageError(f"--set {name}: this argument has its own option, --{name.replace('_', '-')}")
    arguments = {name: value for name, value in options.items() if value is not None} | others
    run(
        data,
        method,
        output,
        resume=resume,
        skip_broken=skip_broken,
        native_scale=native_scale,
        arguments=arguments,
    )


def score(
    context: typer.Context,
    model: Model,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images or folders; with --output also Parquet files and URLs."),
    ],
    json: Json = None,
    heatmaps: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write images with their heat maps there; with --output those of anomalies only.",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    skip_broken: SkipBrokenHere = False,
    native_scale: NativeScale = None,
    output: Output = None,
    resume: ResumeJob = False,
    part_size: PartSize = 512,
    engine: Engine = "local",
    address: Address = None,
    actors: Actors = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    debug: Debug = False,
) -> None:
    """Score images, and say which are defective. Prints a line for each, or writes Parquet files (--output)."""
    from .scale import score as run_job
    from .score import score as run

    if output is None:
        refuse(context, FOR_JOBS, WITH_OUTPUT)
        run(
            model, list(map(Path, paths)), json=json, heatmaps=None if heatmaps is None else Path(heatmaps),
            device=device, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale,
        )  # fmt: skip
        return
    _check_for_job(context, engine, native_scale, skip_broken)
    run_job(
        model, paths, output, json=json, heatmaps=heatmaps, device=device, batch_size=batch_size, resume=resume,
        part_size=part_size, engine=engine, address=address, actors=actors, cpus=cpus, gpus=gpus,
        native_scale=native_scale,
    )  # fmt: skip


def evaluate(
    context: typer.Context,
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="A detector saved by fit.")] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="A category in MVTec's layout; with --output also a labelled table."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Evaluate these anomaly maps instead (any method's): TIFF, NPY, PNG."
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --maps: their ground truth; a map without a mask is good."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="maps|masks", help="Resize these to the size of the others; default, with MODEL: masks."
        ),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SIGMA",
            help="First blur the maps with a Gaussian of this standard deviation, in pixels.",
        ),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            metavar="all|anomalous",
            help="Whose pixels count: those of all images (default), or of anomalous ones only.",
        ),
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="With --maps: use constant memory, and give error bounds.")
    ] = False,
    json: Json = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a report with curves and images.")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 16,
    skip_broken: SkipBrokenHere = False,
    native_scale: NativeScale = None,
    output: Output = None,
    resume: ResumeJob = False,
    part_size: PartSize = 512,
    engine: Engine = "local",
    address: Address = None,
    actors: Actors = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    debug: Debug = False,
) -> None:
    """Measure a detector on labelled test images. Or measure any method's anomaly maps (--maps, --masks)."""
    from .evaluate import evaluate as run
    from .evaluate import evaluate_maps
    from .scale import evaluate as run_job

    for option, value, known in (
        ("--resize", resize, ("maps", "masks")),
        ("--pixels", pixels, ("all", "anomalous")),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{option}: expected {' or '.join(known)}, got {value!r}")
    given = {"resize": resize, "smoothing": smoothing, "images": pixels}
    protocol = {name: value for name, value in given.items() if value is not None}
    if maps is not None or masks is not None:
        if maps is None or masks is None or model is not None:
            raise UsageError("--maps and --masks go together, and without MODEL and DATA")
        others = ("report", "output", "device", "batch_size", "skip_broken", "native_scale", *FOR_JOBS)
        refuse(context, others, "is for MODEL and DATA, not for --maps and --masks")
        evaluate_maps(maps, masks, streaming=streaming, json=json, **protocol)
        return
    if model is None or data is None:
        raise UsageError("wanted MODEL and DATA, or --maps and --masks")
    refuse(context, ["streaming"], "is for --maps and --masks")
    if output is not None:
        refuse(
            context,
            ["resize", "smoothing", "pixels"],
            "does not go with --output, which counts as the maps come",
        )
        refuse(context, ["report"], "needs all maps, which --output does not keep: leave one out")
        _check_for_job(context, engine, native_scale, skip_broken)
        run_job(
            model, data, output, json=json, device=device, batch_size=batch_size, resume=resume, part_size=part_size,
            engine=engine, address=address, actors=actors, cpus=cpus, gpus=gpus, native_scale=native_scale,
        )  # fmt: skip
        return
    refuse(context, FOR_JOBS, WITH_OUTPUT)
    run(
        model,
        Path(data),
        json=json,
        report=report,
        device=device,
        batch_size=batch_size,
        skip_broken=skip_broken,
        native_scale=native_scale,
        **protocol,
    )


def _check_for_job(context: typer.Context, engine: str, native_scale: bool | None, skip_broken: bool) -> None:
    from .scale import check_engine

    check_engine(engine)
    if engine != "ray":
        refuse(context, FOR_RAY, "goes with --engine ray")
    if native_scale:
        raise UsageError("--native-scale does not go with --output, whose workers resize the images")
    if skip_broken:
        raise UsageError(
            "--skip-broken does not go with --output, which keeps unreadable images with an error"
        )


def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Archive to write.")],
    format: Annotated[
        str, typer.Option(metavar="torchscript|export|onnx|openvino", help="Format of the archive.")
    ] = "torchscript",
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|fp16", help="Precision of the networks.")
    ] = "fp32",
    size: Annotated[
        str,
        typer.Option(metavar="N|HxW|dynamic", help="Height and width of the images that the archive takes."),
    ] = "dynamic",
    portable: Annotated[
        bool, typer.Option("--portable", help="Use plain PyTorch operators: runs without stadfast's library.")
    ] = False,
    aot: Annotated[
        bool,
        typer.Option(
            "--aot", help="With --format export: compile to machine code (AOTInductor); takes minutes."
        ),
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Score these images with the detector and the archive, and compare."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a detector as an archive for deployment. It holds the whole graph, for Scorer, C++ or other runtimes."""
    from .export import export as run
    from .fit import parse_size

    run(
        model, output, format=format, precision=precision, portable=portable, aot=aot, verify=verify,
        size=size if size == "dynamic" else parse_size(size, "--size"),
    )  # fmt: skip


def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A detector saved by fit, or an archive.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Images to score, also timed with decoding; default: noise."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes.")] = "1,8",
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Peers to compare with: eager, compile, aot, openvino, openvino-dynamic, anomalib.",
        ),
    ] = "",
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Precision of the networks.")
    ] = "auto",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch and of the peers.")] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Samples per contender and batch size.")] = 60,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write a plot of the images per second.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure latency and throughput. Alone, or taking turns with peers that have the same weights."""
    from .bench import bench as run
    from .bench import parse_batches

    run(
        model, images=images, batches=parse_batches(batch), against=[n for n in against.split(",") if n],
        precision=precision, device=device, threads=threads, rounds=rounds, json=json, plot=plot,
    )  # fmt: skip


def prune(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DATA", help="A category in MVTec's layout, with masks, to search the weights on."
        ),
    ],
    output: NewModel,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Number of modules to keep; default: all, which are only weighed."),
    ] = None,
    objective: Annotated[str, typer.Option(metavar="ce|rank", help="Objective of the weight search.")] = "ce",
    fraction: Annotated[
        float,
        typer.Option(help="Share of each kind of defect to search on; evaluate leaves these images out."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the choice of these images.")] = 0,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Remove the least useful modules of an msfi detector. They are weighed on a few labelled images."""
    from .prune import prune as run

    run(model, data, output, keep=keep, objective=objective, fraction=fraction, seed=seed, device=device)


def info(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A detector saved by fit; default: this machine.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what stadfast runs on here, or the facts of a detector."""
    from .info import info as run

    run(model)


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("demo-output"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Use fewer images and epochs; takes half a minute.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Learn a generated material and find its defects. Writes a report, heat maps and the defects of a web."""
    from .demo import demo as run

    run(output, quick=quick)


_RESUME = "the same command with --resume continues"
app.command()(guarded(fit, after_interrupt=_RESUME))
app.command()(guarded(score, after_interrupt=f"with --output, {_RESUME}"))
app.command()(guarded(evaluate, after_interrupt=f"with --output, {_RESUME}"))
for _command in (prune, export, bench, stream, watch, info, demo):
    app.command()(guarded(_command))
