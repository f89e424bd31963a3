"""`vidweights download`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vidweights import bundle, folder, pretrained
from vidweights.errors import OutputError, UsageError
from vidweights.hub import NotHereError
from vidweights.progress import Progress
from vidweights_cli.output import json_option, print_json, progress_bar


@click.command("download")
@click.argument("names", nargs=-1)
@click.option("--hub", metavar="DIR|URL", help="Fetch from this folder or server; from $HF_ENDPOINT if not given.")
@click.option(
    "--build/--no-build", default=None, help="Make a release that no hub has from what its authors published."
)
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE.tar", help="Write the packages into a tar file.")
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="FILE.tar", help="Take them out of one.")
@json_option
def command(
    names: tuple[str, ...], hub: str | None, build: bool | None, to: Path | None, source: Path | None, as_json: bool
) -> None:
    """Fetch the packages NAMES: releases, or ORG/NAME or ORG/NAME@REVISION on a hub. Every byte is checked.

    For a machine that is offline: `--to FILE.tar` where there is a network, and `--from FILE.tar` there.

    \b
      vidweights download i3d-rgb-scratch-k400
      vidweights download me/my-i3d@refs/pr/1 --to weights.tar
      vidweights download --from weights.tar
    """
    if (source is None) == (not names) or (source is not None and to is not None):
        raise UsageError("give NAMES to fetch, with or without --to; or --from alone")
    if to is not None and to.exists():
        raise OutputError(f"{to} exists already; nothing was fetched. Remove it, or choose another --to.")
    with progress_bar() as progress:
        if source is not None:
            found = [(package.pinned, path) for package, path in bundle.read(source, progress)]
        else:
            found = [(name, _fetched(name, hub, build, progress)) for name in names]
        if to is not None:
            bundle.write(to, [(bundle.described(path, name), path) for name, path in found], progress)
    if as_json:
        print_json([{"name": name, "folder": str(path), "state": _state(path)} for name, path in found])
        return
    for name, path in found:
        click.echo(f"{name}  {_state(path)}  {path}")
    if to is not None:
        click.echo(f"wrote {to}; on the other machine: vidweights download --from {to.name}")


def _fetched(name: str, hub: str | None, build: bool | None, progress: Progress) -> Path:
    """The folder of a name; where no hub has a release, the person is asked whether to make it here."""
    try:
        path = pretrained.download(name, hub=hub, build=bool(build), progress=progress)
    except NotHereError as error:
        if build is not None or name not in pretrained.list_weights() or not sys.stdin.isatty():
            raise
        click.echo(f"vidweights: {error}", err=True)
        if not click.confirm(f"\nMake {name} from the release itself?", err=True):
            raise
        path = pretrained.download(name, hub=hub, build=True, progress=progress)
    if not (path / folder.CONFIG).is_file():
        raise UsageError(f"{path} is no finished folder, so there is nothing to fetch.")
    return path


def _state(path: Path) -> str:
    state = folder.validation_state(path, folder.read_config(path))
    return "validated" if state == "passed" else state
