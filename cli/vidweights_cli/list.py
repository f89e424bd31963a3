"""`vidweights list`."""

from __future__ import annotations

import click

from vidweights import pretrained
from vidweights_cli.output import json_option, megabytes, print_json, table


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """The releases in the catalog, and which of them are on this machine.

    "here" says what this machine has: validated, unvalidated, failed (its validation), or nothing (-).
    """
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
