"""`vidweights list`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import click

from vidweights import catalog, folder, hub, pretrained
from vidweights.errors import UsageError
from vidweights.folder_hub import FolderHub
from vidweights_cli.output import json_option, print_json, table


@click.command("list")
@click.argument("name", required=False)
@click.option("--hub", "where", metavar="DIR", help="List what this folder that serves as a hub has, instead.")
@json_option
def command(name: str | None, where: str | None, as_json: bool) -> None:
    """The releases in the catalog by collection, and which of them are on this machine.

    NAME leaves those of one collection (ig65m), or those whose name begins with it (r2plus1d_34).

    "input" is what a clip has: its channels, frames and pixels. "here" says what this machine has: validated,
    unvalidated, failed (its validation), or nothing (-). Another "-" is what was not published.
    """
    if where is not None:
        _list_hub(where, as_json)
        return
    records = [pretrained.weights(each) for each in _names(name)]
    if as_json:
        print_json([_fields(record) for record in records])
        return
    table(("name", "input", "classes", "top-1", "size", "here"), tuple(_rows(records)))


def _names(name: str | None) -> list[str]:
    if name is None:
        return list(pretrained.list_weights())
    found = [
        each for each in pretrained.list_weights() if each.startswith(name) or catalog.get(each).collection == name
    ]
    if not found:
        raise UsageError(f"no release or collection is called {name!r}; {catalog.hint(name)}")
    return found


def _rows(records: Sequence[pretrained.Weights]) -> Iterator[Sequence[str]]:
    by_collection = sorted(records, key=lambda record: (record.release.collection, _in_order(record.name)))
    for collection, of_one in groupby(by_collection, key=lambda record: record.release.collection):
        yield (collection,)
        yield from (_row(record) for record in of_one)


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts 8 before 16."""
    parts = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _row(record: pretrained.Weights) -> tuple[str, ...]:
    release, words = record.release, {"absent": "-", "passed": "validated"}
    return (
        record.name,
        f"{release.input['channels']} {release.input['frames']} x {release.input['crop']}",
        str(release.config.num_classes),
        f"{release.accuracy['top1']:.1f} %" if "top1" in release.accuracy else "-",
        release.shown_size,
        words.get(record.state, record.state),
    )


def _fields(record: pretrained.Weights) -> dict[str, object]:
    release = record.release
    return {
        "name": record.name,
        "title": release.title,
        "collection": release.collection,
        "checkpoint": release.checkpoint,
        "family": release.family,
        "config": release.config.to_json(),
        "accuracy": dict(release.accuracy),
        "bytes": release.size,
        "verified": release.verified,
        "state": record.state,
        "folder": str(record.folder) if record.folder else None,
    }


def _list_hub(where: str, as_json: bool) -> None:
    opened = hub.opened(where)
    if not isinstance(opened, FolderHub):
        raise UsageError(f"--hub {where}: expected a folder; what a server has, its own pages list.")
    found = []
    for repository in opened.repositories():
        path = opened.folder(repository)
        config = folder.read_config(path)
        state = folder.validation_state(path, config)
        fields = {"repository": repository.name, "commit": path.name, "name": config.name, "family": config.family}
        found.append({**fields, "state": state})
    if as_json:
        print_json(found)
        return
    rows = [(f["repository"], f["commit"], f["name"], f["family"], f["state"]) for f in found]
    table(("repository", "commit", "name", "family", "state"), rows)
