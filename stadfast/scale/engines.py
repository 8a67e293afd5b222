"""Where parts are scored: in this process, or by actors on a Ray cluster. Ray Data does the scheduling."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import StadfastError, UsageError
from .results import Report
from .sources import Part
from .store import needed
from .worker import Job, PartScorer

ENGINES = ("local", "ray")
_INSTALL = 'engine="ray"'
_TOKEN = "; if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"  # Ray only says: timeout


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster, and what of it each actor takes.

    Attributes:
        address: ``"auto"`` (the one that runs on this machine, or that ``RAY_ADDRESS`` names), ``ray://host:port``
            (from outside, by Ray's client), or None: that of ``RAY_ADDRESS``, else one on this machine for the
            time of the job.
        actors: how many; None: as many as the cluster has room for.
        cpus: cores of each actor, and torch's threads in it.
        gpus: of each actor, also a part of one; None: one where the cluster has GPUs and the device is not the CPU.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise UsageError(f"actors: expected a number from 1, got {self.actors}")
        if self.cpus < 1:
            raise UsageError(f"cpus: expected a number from 1, got {self.cpus}")
        if self.gpus is not None and self.gpus < 0:
            raise UsageError(f"gpus: expected 0 or more, got {self.gpus}")


def run_here(job: Job, parts: Sequence[Part]) -> Iterator[Report]:
    """One part after the other."""
    scorer = PartScorer(job)
    try:
        yield from map(scorer, parts)
    finally:
        scorer.close()


def run_on_ray(job: Job, parts: Sequence[Part], cluster: Cluster) -> Iterator[Report]:
    """Reports as parts get finished, in any order.

    Only descriptions of parts and reports pass through Ray's object store: actors read and write the files themselves,
    and take the next part when they are done. When an actor or its node dies, Ray Data gives its parts to others.

    Raises:
        UsageError: no ray, no such cluster, or no room in it for an actor. StadfastError: an actor's own.
    """
    ray = needed("ray", _INSTALL)
    needed("ray.data", _INSTALL)
    with _connected(ray, cluster.address), _in_one_line(ray):
        outside = ray.util.client.ray.is_connected()
        yield from (_from_outside if outside else _from_inside)(ray, job, parts, cluster)


def _from_inside(ray: Any, job: Job, parts: Sequence[Part], cluster: Cluster) -> Iterator[Report]:
    """The job with this process as Ray Data's driver."""
    data = needed("ray.data", _INSTALL)
    gpus, count = _room(ray.cluster_resources(), cluster, job.device)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False  # there is our own
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its news are for those who write pipelines
    job = replace(job, threads=cluster.cpus, device="cuda" if gpus else "cpu")
    rows = [{"part": pickle.dumps(part)} for part in parts]
    reports = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor, batch_size=1, num_cpus=cluster.cpus, num_gpus=gpus,
        compute=data.ActorPoolStrategy(size=min(count, len(parts))), fn_constructor_args=[job],
    )  # fmt: skip
    for row in reports.iter_rows():
        if failure := row.pop("failure"):
            raise StadfastError(failure)
        yield Report(**row)


def _from_outside(ray: Any, job: Job, parts: Sequence[Part], cluster: Cluster) -> Iterator[Report]:
    """The job by way of Ray's client, through which Ray Data cannot be driven: an actor on the head node does it.

    The cluster ends that actor, and so the job, when this process ends or loses the connection.
    """
    on_head = {
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
    }  # outlives all nodes that may be lost
    driver = ray.remote(**on_head)(_Driver).remote(job, parts, cluster)
    try:
        while (found := ray.get(driver.next_report.remote())) is not None:
            if isinstance(found, StadfastError):
                raise found
            yield found
    except ConnectionError as error:
        raise StadfastError(
            "the connection to the cluster is lost; resume=True goes on with the job"
        ) from error


class _Driver:
    """Drives Ray Data inside of the cluster, for a process outside."""

    def __init__(self, job: Job, parts: Sequence[Part], cluster: Cluster) -> None:
        self._ray = needed("ray", _INSTALL)
        self._reports = _from_inside(self._ray, job, parts, cluster)

    def next_report(self) -> Report | StadfastError | None:
        """None after the last one. Errors are returned, as Ray would deliver a traceback's text."""
        try:
            with _in_one_line(self._ray):
                return next(self._reports, None)
        except StadfastError as error:
            return error


@contextmanager
def _in_one_line(ray: Any) -> Iterator[None]:
    """Ray's errors as ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise StadfastError(f"Ray: {str(error).strip().splitlines()[0]}") from error


class _Actor:
    """A worker in Ray Data's form: batches of one row, which describes a part.

    Errors come back as rows: Ray would try again first, and then deliver a traceback's text.
    """

    def __init__(self, job: Job) -> None:
        self._failure = ""
        try:
            self._scorer = PartScorer(job)
        except Exception as error:
            self._failure = _in_words(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        part: Part = pickle.loads(batch["part"][0])  # of our own making, see run_on_ray
        report = Report(part.number)
        try:
            report = report if self._failure else self._scorer(part)
        except Exception as error:
            self._failure = _in_words(error)
        return {name: [value] for name, value in [*vars(report).items(), ("failure", self._failure)]}


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, StadfastError) else f"{type(error).__name__}: {error}"


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():  # somebody's program has its own cluster
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **({} if address else here))
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = _TOKEN if address is not None and address.startswith("ray://") else ""
        raise UsageError(f"address: there is no Ray cluster at {address}: {reason}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _room(resources: dict[str, float], cluster: Cluster, device: str) -> tuple[float, int]:
    """GPUs of each actor, and the number of actors."""
    cpus, all_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if all_gpus and device != "cpu" else 0.0
    fitting = int(min(cpus // cluster.cpus, all_gpus // gpus if gpus else cpus))
    if gpus > 1 or fitting < 1:
        raise UsageError(
            f"an actor of {cluster.cpus} cores and {gpus:g} GPUs has no room in the cluster: "
            f"it has {cpus:g} cores and {all_gpus:g} GPUs"
        )
    return gpus, cluster.actors or fitting
