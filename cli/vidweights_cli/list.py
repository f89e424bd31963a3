"""`vidweights list`."""

from __future__ import annotations

import click

from vidweights import folder, hub, pretrained
from vidweights.errors import UsageError
from vidweights.folder_hub import FolderHub
from vidweights_cli.output import json_option, megabytes, print_json, table


@click.command("list")
@click.option("--hub", "where", metavar="DIR", help="List what this folder that serves as a hub has, instead.")
@json_option
def command(where: str | None, as_json: bool) -> None:
    """The releases in the catalog, and which of them are on this machine.

    "here" says what this machine has: validated, unvalidated, failed (its validation), or nothing (-).
    """
    if where is not None:
        _list_hub(where, as_json)
        return
    records = [pretrained.weights(name) for name in pretrained.list_weights()]
    if as_json:
        print_json([_fields(record) for record in records])
        return
    words = {"absent": "-", "passed": "validated"}
    table(
        ("name", "checkpoint", "input", "classes", "published top-1", "size", "here"),
        [
            (
                record.name,
                f"{record.release.collection} {record.release.checkpoint}",
                str(record.release.input["channels"]),
                str(record.release.config.num_classes),
                f"{record.release.accuracy['top1']} %" if record.release.accuracy else "-",
                "-" if record.release.size is None else megabytes(record.release.size),
                words.get(record.state, record.state),
            )
            for record in records
        ],
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
