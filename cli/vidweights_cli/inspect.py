"""`vidweights inspect`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vidweights import dialects, formats, identity, plan
from vidweights.dialects import Recognition
from vidweights.errors import FormatError, PlanError
from vidweights.folder import read_config
from vidweights.formats.base import Checkpoint
from vidweights.identity import Match
from vidweights.progress import Progress
from vidweights_cli.output import json_option, megabytes, print_json, printable, progress_bar, table


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", "-t", is_flag=True, help="List every tensor, with key, shape and dtype.")
@json_option
def command(file: Path, tensors: bool, as_json: bool) -> None:
    """Say what FILE is: its format, network, dialect and tensors, and which release it equals bit for bit.

    FILE is a checkpoint in any format (TensorFlow bundle, safetensors, torch, Flax pickle, HDF5, npz), or a
    folder with one. Nothing in it is executed.
    """
    with formats.open_checkpoint(file) as checkpoint:
        with progress_bar() as progress:
            _check(checkpoint, progress)
        found = _recognise(file, checkpoint)
        matches = identity.identify(checkpoint, found) if found else ()
        if as_json:
            print_json(_facts(checkpoint, found, matches))
        else:
            _show(checkpoint, found, matches, tensors)


def _check(checkpoint: Checkpoint, progress: Progress) -> None:
    """Read every tensor once, which compares it with its checksum where the format has one."""
    for done, key in enumerate(checkpoint.tensors):
        checkpoint.read(key)
        progress("checking", done + 1, len(checkpoint.tensors))


def _recognise(file: Path, checkpoint: Checkpoint) -> Recognition | None:
    """What the tensors say and, in a finished folder, what `config.json` adds to it."""
    try:
        found = dialects.recognise(checkpoint.tensors)
    except PlanError:
        return None
    with suppress(FormatError, PlanError):  # there is none, or it is another program's, or of other weights
        config = read_config(file if file.is_dir() else file.parent)
        if config.main in {path.name for path in checkpoint.files}:
            return plan.declared(found, config.config, str(file))
    return found


def _size(checkpoint: Checkpoint) -> int:
    return sum(path.stat().st_size for path in checkpoint.files)


def _facts(checkpoint: Checkpoint, found: Recognition | None, matches: tuple[Match, ...]) -> dict[str, Any]:
    return {
        "format": checkpoint.format,
        "files": [str(path) for path in checkpoint.files],
        "bytes": _size(checkpoint),
        "family": found.dialect.family.name if found else None,
        "dialect": found.dialect.name if found else None,
        "config": found.config.to_json() if found else None,
        "facts": found.dialect.all_facts if found else None,
        "releases": [
            {"name": m.release.name, "equal": m.equal, "total": m.total, "differing": list(m.differing)}
            for m in matches
        ],
        "tensors": [
            {
                "key": info.key,
                "shape": list(info.shape),
                "dtype": info.dtype,
                "crc32c": f"{identity.crc32c(checkpoint.read(info.key)):08x}",
            }
            for info in checkpoint.tensors.values()
        ],
        "others": dict(checkpoint.others),
    }


def _show(checkpoint: Checkpoint, found: Recognition | None, matches: tuple[Match, ...], tensors: bool) -> None:
    count = len(checkpoint.tensors)
    click.echo(f"format    {checkpoint.format}, {megabytes(_size(checkpoint))}")
    for path in checkpoint.files:
        click.echo(f"file      {path}")
    click.echo(f"tensors   {count}" + (f", and {len(checkpoint.others)} other entries" if checkpoint.others else ""))
    if found is None:
        click.echo("network   not a known one; --tensors lists what is in it")
    else:
        config = ", ".join(f"{key} {value}" for key, value in found.config.to_json().items())
        click.echo(f"network   {found.dialect.family.name}, {config}")
        click.echo(f"dialect   {found.dialect.name} ({found.dialect.source})")
        click.echo(f"          {found.found} of the {found.expected} keys of that dialect" + _prefix(found))
        for fact, value in found.dialect.all_facts.items():
            click.echo(f"fact      {fact.replace('_', ' ')}: {value}")
        _show_matches(matches)
    if tensors:
        rows = [(i.key, " x ".join(map(str, i.shape)) or "scalar", i.dtype) for i in checkpoint.tensors.values()]
        table(("key", "shape", "dtype"), rows)
        for key, what in checkpoint.others.items():
            click.echo(printable(f"{key}: {what}"))


def _prefix(found: Recognition) -> str:
    return f", under the prefix {found.prefix!r}" if found.prefix else ""


def _show_matches(matches: tuple[Match, ...]) -> None:
    whole = [match for match in matches if match.whole]
    for match in whole:
        click.echo(f"release   {match.release.name}: all {match.total} tensors are equal, bit for bit")
    if whole:
        return
    if not matches:
        click.echo("release   none: it shares no tensor with a release in the catalog")
    for match in matches[:1]:
        click.echo(f"release   none; closest is {match.release.name}, {match.equal} of {match.total} tensors equal")
        click.echo(f"          differing: {match.some}")
