"""Whole processes, timed in turn: wall time, and the most anonymous memory that one held."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Command = Sequence[str]


@dataclass(frozen=True)
class Measured:
    """One run: wall seconds, and the peak of anonymous resident memory in MiB (sampled every 2 ms)."""

    seconds: float
    anonymous: float


def run(command: Command) -> Measured:
    """Run a command to its end; it must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment())
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()}")
    return Measured(seconds, peak)


def _environment() -> dict[str, str]:
    """Ours, in which Python keeps what it has compiled, as an installation has it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _anonymous(pid: int) -> float:
    """Anonymous resident memory of a process in MiB: not the pages of files that it maps."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("RssAnon")), None)
    return int(line.split()[1]) / 1024 if line else 0.0


def in_turn(commands: Mapping[str, Command], runs: int, outputs: Sequence[Path] = ()) -> dict[str, Measured]:
    """Each command `runs` times, A B C A B C ..., after one run of each that is not counted; medians.

    `outputs` are removed before each run, and what was written before is on the disk, so that no run pays for another.
    """
    results: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, command in commands.items():
            for output in outputs:
                shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
            os.sync()
            results[name].append(run(command))
    return {
        name: Measured(statistics.median(m.seconds for m in ms[1:]), max(m.anonymous for m in ms[1:]))
        for name, ms in results.items()
    }


def show(title: str, results: Mapping[str, Measured]) -> None:
    """A table of medians, each with its ratio to the first row."""
    first = next(iter(results.values()))
    print(f"\n{title}")
    print(f"  {'':44} {'seconds':>8} {'ratio':>7} {'anonymous MiB':>14}")
    for name, m in results.items():
        print(f"  {name:44} {m.seconds:8.3f} {m.seconds / first.seconds:7.2f} {m.anonymous:14.0f}")
