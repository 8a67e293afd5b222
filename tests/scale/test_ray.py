"""Jobs on a Ray cluster of three raylets on this machine, one of which only leads: workers and a node die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stadfast.data import open_dataset
from stadfast.errors import StadfastError, UsageError
from stadfast.scale import Cluster, evaluate, score

ray = pytest.importorskip("ray", reason="needs ray: pip install 'stadfast[ray]'")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.slow

PATIENCE_S = 120.0  # for what always happens, however slow the machine
HERE: dict[str, Any] = {"threads": 1, "show_progress": False}
THERE: dict[str, Any] = {"engine": "ray", "show_progress": False}


@dataclass
class Machines:
    """The cluster; ``workers`` are the nodes that have a core."""

    cluster: Any
    client_port: int
    workers: list[Any] = field(default_factory=list)

    def node_of(self, pid: int) -> Any:
        """The node whose raylet has started a process."""
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self.workers}
        return raylets[parent]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    from ray.cluster_utils import Cluster as RayCluster

    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    memory = {"object_store_memory": 100_000_000}
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 5,
    }
    port = free_port()
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "ray_client_server_port": port,
        "_system_config": quick,
    }
    cluster = RayCluster(initialize_head=True, head_node_args=head | memory)
    try:
        machines = Machines(cluster, port, [cluster.add_node(num_cpus=1, **memory) for _ in range(2)])
        ray.init(address=cluster.address, log_to_driver=False)
        yield machines
    finally:
        ray.shutdown()
        cluster.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def table(folder: Path) -> Any:
    return parquet.read_table(folder)


def test_scores_are_equal_to_the_bit(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"part_size": 6, "batch_size": 4}
    here = score(model, [str(archive)], f"{tmp_path}/here", heatmaps=f"{tmp_path}/h1", **options, **HERE)
    there = score(model, [str(archive)], f"{tmp_path}/there", heatmaps=f"{tmp_path}/h2", **options, **THERE)
    assert table(tmp_path / "there").equals(table(tmp_path / "here"))
    assert (
        (there.images, there.broken, there.defective)
        == (here.images, 2, here.defective)
        == (42, 2, here.defective)
    )
    pictures = {
        path.relative_to(tmp_path / "h1"): path.read_bytes() for path in (tmp_path / "h1").rglob("*.png")
    }
    assert len(pictures) == here.defective
    assert pictures == {
        path.relative_to(tmp_path / "h2"): path.read_bytes() for path in (tmp_path / "h2").rglob("*.png")
    }


def test_from_outside_of_the_cluster(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    """``ray://``: this process is in the cluster already, so that another one has to be the client."""
    options: dict[str, Any] = {"part_size": 8, "batch_size": 4}
    score(model, [str(archive)], f"{tmp_path}/here", **options, **HERE)
    output = tmp_path / "there"
    command = [
        "score",
        str(model),
        str(archive),
        "--output",
        str(output),
        "--part-size",
        "8",
        "--batch-size",
        "4",
    ]
    engine = ["--engine", "ray", "--address", f"ray://127.0.0.1:{machines.client_port}"]

    def client(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "stadfast", *command, *engine, *more]
        for _ in range(3):  # on a busy machine Ray's server gives clients up before their process has started
            done = subprocess.run(words, capture_output=True, text=True, timeout=4 * PATIENCE_S)
            if "there is no Ray cluster" not in done.stderr:
                break
        return done

    refused = client("--gpus", "1")  # by the actor on the head node
    assert refused.returncode != 0
    assert "stadfast: error: an actor of 1 cores and 1 GPUs has no room" in refused.stderr
    done = client("--resume")
    assert done.returncode == 0, done.stderr
    assert "42 images" in done.stdout
    assert table(output).equals(table(tmp_path / "here"))


def test_metrics_are_equal(machines: Machines, model: Path, material: Path, tmp_path: Path) -> None:
    samples = open_dataset(material).test
    here, _ = evaluate(model, samples, f"{tmp_path}/here", part_size=2, batch_size=2, **HERE)
    there, _ = evaluate(model, samples, f"{tmp_path}/there", part_size=2, batch_size=2, **THERE)
    assert there == here


def test_an_error_of_a_worker_is_ours(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StadfastError, match=r"cannot write .*file/") as caught:
        score(model, [str(archive)], f"{tmp_path}/out", heatmaps=f"{tmp_path}/file", **THERE)
    assert "\n" not in str(caught.value)


def test_a_cluster_that_does_not_answer(
    model: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("ray client connection timeout")  # all that Ray says where a token is missing

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        UsageError, match=r"no Ray cluster at ray://there:1: .* timeout; .* RAY_AUTH_MODE=token"
    ):
        score(model, [str(archive)], f"{tmp_path}/out", cluster=Cluster("ray://there:1"), **THERE)


def test_an_actor_without_room(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an actor of 1 cores and 1 GPUs has no room"):
        score(model, [str(archive)], f"{tmp_path}/out", cluster=Cluster(gpus=1), **THERE)


def test_a_killed_worker(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    struck = run_and_strike(model, archive, tmp_path, lambda pid: os.kill(pid, signal.SIGKILL))
    assert len(struck) == 2  # the part was read again, by another process
    assert struck[0] != struck[1]


def test_a_removed_node(machines: Machines, model: Path, archive: Path, tmp_path: Path) -> None:
    def remove(pid: int) -> None:
        node = machines.node_of(pid)
        machines.workers.remove(node)
        machines.cluster.remove_node(node, allow_graceful=False)

    struck = run_and_strike(model, archive, tmp_path, remove)
    assert len(struck) == 2


def run_and_strike(model: Path, archive: Path, folder: Path, strike: Callable[[int], None]) -> list[int]:
    """Run a job, strike its first worker in the middle of a part, and check that nothing is lost or there twice.

    One image is a pipe: whoever reads it is in the middle of a part, and stays there until the test has written.

    Returns:
        the processes that have opened the pipe, the one that was struck first.
    """
    pipe = folder / "pipe.png"
    os.mkfifo(pipe)
    picture = next(iter(sorted(archive.rglob("*.png"))[1:]))
    images = [str(pipe), str(archive)]
    readers: list[int] = []

    def watch() -> None:
        file = opened(pipe)
        readers.append(reader_of(pipe))
        strike(readers[0])
        gone(readers[0])
        os.close(file)
        file = opened(pipe)
        readers.append(reader_of(pipe))
        os.set_blocking(file, True)
        os.write(file, picture.read_bytes())
        os.close(file)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    options: dict[str, Any] = {"part_size": 3, "batch_size": 2}
    there = score(model, images, f"{folder}/there", **options, **THERE)
    watcher.join(PATIENCE_S)
    assert there.images == 43
    assert there.parts == 15
    pipe.unlink()
    Image.open(picture).save(pipe)
    score(model, images, f"{folder}/here", **options, **HERE)
    assert table(folder / "there").equals(table(folder / "here"))
    return readers


def opened(pipe: Path) -> int:
    """The pipe's end to write to, once somebody reads it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            time.sleep(0.02)
    raise TimeoutError(f"nobody reads {pipe}")


def reader_of(pipe: Path) -> int:
    """The other process that has the pipe open."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if int(link.parts[2]) != os.getpid() and link.readlink() == pipe:
                    return int(link.parts[2])
            except OSError:  # gone meanwhile, or somebody else's
                continue
    raise TimeoutError(f"nobody has {pipe} open")


def gone(pid: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
