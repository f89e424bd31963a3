"""Faults ordered from the test hub, one run each: how many happened, how each run ended, and what was visible then.

    python benchmarks/hub_faults.py

Every run has a hub and a cache of its own on loopback, and pushes or downloads the same package of some 6 MB. "whole"
means that every byte is there and was compared; "nothing" that neither the hub's main nor the cache shows any of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub import Fault, Hub, running
from packages import package

import vidweights
from vidweights import remote_hub
from vidweights.errors import VidweightsError
from vidweights.families.i3d import I3DConfig
from vidweights.files import sha256_of
from vidweights.hub import RepositoryCache, opened
from vidweights_converters import publish

NAME = "acme/net"
COMMIT, PUT, GET = "POST /api/models/.*/commit/", "PUT /put/", "GET /get/"
ALWAYS = 99
SCRIPTS = {
    "push": "import sys, vidweights; vidweights.push(sys.argv[1], sys.argv[2], hub=sys.argv[3])",
    "download": "import sys, vidweights; vidweights.download(sys.argv[2], hub=sys.argv[3])",
}


@dataclass(frozen=True)
class Run:
    """One row: what is done, under which faults, and how it should end."""

    what: str
    job: str
    faults: tuple[Fault, ...]
    expected: str = "whole"


RUNS = (
    Run("503 twice while files are announced", "push", (Fault("status", "/preupload/", 2),)),
    Run("500 from the LFS batch", "push", (Fault("status", "/objects/batch", status=500),)),
    Run("503 twice from the storage", "push", (Fault("status", PUT, 2),)),
    Run("reset after 3 MB of an upload", "push", (Fault("cut-reset", PUT, after=3_000_000),)),
    Run("answer to an upload lost", "push", (Fault("lost", PUT),)),
    Run("503 twice from the commit", "push", (Fault("status", COMMIT, 2),)),
    Run("reset before the commit", "push", (Fault("reset", COMMIT),)),
    Run("answer to the commit lost", "push", (Fault("lost", COMMIT),)),
    Run("429 from the commit, wait 1 s", "push", (Fault("status", COMMIT, status=429, headers={"Retry-After": "1"}),)),
    Run("503 always from the commit", "push", (Fault("status", COMMIT, ALWAYS),), "nothing"),
    Run("503 always from the storage", "push", (Fault("status", PUT, ALWAYS),), "nothing"),
    Run("403 from the commit", "push", (Fault("status", COMMIT, status=403),), "nothing"),
    Run("412 from the commit", "push", (Fault("status", COMMIT, status=412),), "nothing"),
    Run("killed in an upload", "kill push", (Fault("slow", PUT, 2, seconds=0.3),), "nothing"),
    Run("another commit in between", "stale push", (), "nothing"),
    Run("another push at the same time", "two pushes", (Fault("slow", PUT, 4, seconds=0.05),)),
    Run("answer to a pull request lost", "pull request", (Fault("lost", COMMIT),), "nothing"),
    Run("503 twice from the hub", "download", (Fault("status", "/api/models", 2),)),
    Run("reset before config.json", "download", (Fault("reset", "/resolve/.*config.json"),)),
    Run(
        "closed after 1 MB, then 2 MB", "download", (Fault("cut", GET, after=1 << 20), Fault("cut", GET, after=2 << 20))
    ),
    Run("reset after 1 MB, four times", "download", (Fault("cut-reset", GET, 4, after=1 << 20),)),
    Run("closed, then ranges ignored", "download", (Fault("cut", GET, after=1 << 20), Fault("ignore-range", GET))),
    Run("one bit flipped once", "download", (Fault("flip", GET),)),
    Run("one bit flipped in config.json", "download", (Fault("flip", "resolve-cache.*config"),)),
    Run("one bit flipped always", "download", (Fault("flip", GET, ALWAYS),), "nothing"),
    Run("503 always from the storage", "download", (Fault("status", GET, ALWAYS),), "nothing"),
    Run("401 from the hub", "download", (Fault("status", "/resolve/", status=401),), "nothing"),
    Run("killed in a download", "kill download", (Fault("slow", GET, 2, seconds=0.3),), "nothing"),
    Run("killed, then again", "kill and download", (Fault("slow", GET, 2, seconds=0.3),)),
    Run("eight at once, one reset", "eight downloads", (Fault("cut-reset", GET, after=1 << 20),)),
)


def main() -> None:
    """Run all, print a table, and leave with 1 if anything was half visible, or ended otherwise than it should."""
    argparse.ArgumentParser(description="Faults, and what became of them.").parse_args()
    remote_hub.PAUSES = (0.05, 0.1, 0.1, 0.1)
    injected, bad = 0, 0
    with tempfile.TemporaryDirectory(prefix="vidweights-faults-") as scratch:
        network = I3DConfig(num_classes=7, depth_multiplier=1 / 4)
        folder = package(Path(scratch) / "net", network=network)
        package(other(folder), seed=1, network=network)
        print(f"{'job':18} {'fault':36} {'times':>5} {'seconds':>8}  {'visible':8} said")
        for index, run in enumerate(RUNS):
            started = time.perf_counter()
            with place(Path(scratch) / str(index)) as hub:
                visible, said = carry_out(run, hub, folder)
                count = len(hub.injected) + run.job.startswith(("kill", "stale", "two"))
            injected += count
            bad += visible != run.expected
            mark = "" if visible == run.expected else f"   EXPECTED {run.expected}"
            seconds = time.perf_counter() - started
            print(f"{run.job:18} {run.what:36} {count:5} {seconds:8.2f}  {visible:8} {said[:70]}{mark}", flush=True)
    print(f"{injected} faults in {len(RUNS)} runs; {bad} ended otherwise than they should")
    sys.exit(bool(bad))


@contextmanager
def place(root: Path) -> Iterator[Hub]:
    """A hub, and an environment whose caches are empty."""
    os.environ |= {
        "HF_HOME": str(root / "hf"),
        "VIDWEIGHTS_HOME": str(root / "home"),
        "HF_TOKEN": "hf_alice_secret",
        "HF_HUB_DISABLE_XET": "1",
    }
    with running(root / "hub") as hub:
        yield hub


def carry_out(run: Run, hub: Hub, folder: Path) -> tuple[str, str]:
    """Do the job of a row under its faults; what is visible then, and the first line that was said."""
    if "push" in run.job or run.job == "pull request":
        opened(hub.url).api.create_repo(NAME)  # type: ignore[attr-defined]
        look = on_the_hub
    else:
        publish.push(publish.plan(folder, NAME, opened(hub.url)))
        hub.injected.clear()
        look = in_the_cache
    hub.faults = [replace(fault) for fault in run.faults]
    said = ""
    try:
        with redirect_stderr(StringIO()):
            JOBS[run.job](hub, folder)
    except VidweightsError as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return look(hub, folder), said


def push(hub: Hub, folder: Path) -> None:
    """Publish the package."""
    publish.push(publish.plan(folder, NAME, opened(hub.url)))


def stale_push(hub: Hub, folder: Path) -> None:
    """Publish it after somebody else has committed."""
    planned = publish.plan(folder, NAME, opened(hub.url))
    repository = hub.repositories[NAME]
    hub.commit(repository, "main", hub.head(NAME).files, "somebody else's")
    publish.push(planned)


def two_pushes(hub: Hub, folder: Path) -> None:
    """Publish it, and another under the same name, planned against the same commit; one of them is told."""
    planned = [publish.plan(path, NAME, opened(hub.url)) for path in (folder, other(folder))]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, planned))
    errors = [error for error in outcomes if error is not None]
    if len(errors) != 1:
        raise SystemExit(f"of two pushes at once {len(errors)} were refused")
    raise errors[0]


def outcome(planned: publish.PushPlan) -> VidweightsError | None:
    """The error of a push, if there was one."""
    try:
        publish.push(planned)
    except VidweightsError as error:
        return error
    return None


def other(folder: Path) -> Path:
    """Another package of the same name."""
    return folder.parent / "other" / folder.name


def pull_request(hub: Hub, folder: Path) -> None:
    """Open a pull request."""
    publish.push(publish.plan(folder, NAME, opened(hub.url)), pull_request=True)


def download(hub: Hub, folder: Path) -> None:
    """Fetch it."""
    vidweights.download(NAME, hub=hub.url)


def process(job: str, hub: Hub, folder: Path) -> subprocess.Popen[bytes]:
    """A process that pushes or downloads."""
    return subprocess.Popen([sys.executable, "-c", SCRIPTS[job], str(folder), NAME, hub.url], stderr=subprocess.DEVNULL)


def killed(job: str, hub: Hub, folder: Path) -> None:
    """Start a process, and kill it when over 1 MB of a file is on its way."""
    started = process(job, hub, folder)
    where = hub.root / "lfs" if job == "push" else RepositoryCache(NAME).folder / "blobs"
    pattern = ".*" if job == "push" else "*.incomplete"
    while started.poll() is None:
        if any(path.stat().st_size > 1_000_000 for path in where.glob(pattern)):
            started.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    if started.returncode != -signal.SIGKILL:
        raise SystemExit("the process ended before it could be killed")


def eight(hub: Hub, folder: Path) -> None:
    """Fetch it by eight processes at once."""
    processes = [process("download", hub, folder) for _ in range(8)]
    if any(started.wait() for started in processes):
        raise SystemExit("one of eight downloads failed")


def kill_and_download(hub: Hub, folder: Path) -> None:
    """Fetch it after a download that was killed."""
    killed("download", hub, folder)
    download(hub, folder)


JOBS: dict[str, Callable[[Hub, Path], None]] = {
    "push": push,
    "stale push": stale_push,
    "two pushes": two_pushes,
    "pull request": pull_request,
    "kill push": lambda hub, folder: killed("push", hub, folder),
    "download": download,
    "kill download": lambda hub, folder: killed("download", hub, folder),
    "kill and download": kill_and_download,
    "eight downloads": eight,
}


def on_the_hub(hub: Hub, folder: Path) -> str:
    """What the newest commit has of the package, and whether the storage has only whole files."""
    for path in (hub.root / "lfs").iterdir():
        if not path.name.startswith(".") and sha256_of(path) != path.name:
            return "HALF"
    there = set(hub.head(NAME).files) - {".gitattributes"}
    planned = [publish.plan(path, NAME, opened(hub.url)) for path in (folder, other(folder))]
    whole = any(not plan.changes for plan in planned) and len(there) == 6
    return "nothing" if not there else "whole" if whole else "HALF"


def in_the_cache(hub: Hub, folder: Path) -> str:
    """What `load` would find without the network."""
    snapshots = list((RepositoryCache(NAME).folder / "snapshots").glob("*/*"))
    if not snapshots:
        return "nothing"
    same = all(sha256_of(path) == sha256_of(folder / path.name) for path in snapshots)
    return "whole" if same and len(snapshots) == 6 else "HALF"


if __name__ == "__main__":
    main()
