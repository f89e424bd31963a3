"""`vidweights push`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vidweights import hub
from vidweights_cli.output import json_option, megabytes, print_json, progress_bar, table
from vidweights_converters import publish
from vidweights_converters.publish import Pushed, PushPlan


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repo", required=True, metavar="ORG/NAME", help="The repository; it is made if it is not there.")
@click.option("--hub", "where", metavar="DIR|URL", help="Push to this folder or server; to $HF_ENDPOINT if not given.")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request, and leave `main` as it is.")
@click.option("--private", is_flag=True, help="If the repository has to be made, make it private.")
@click.option("--dry-run", is_flag=True, help="Print files, hashes and what would change, and publish nothing.")
@json_option
def command(
    folder: Path, repo: str, where: str | None, pull_request: bool, private: bool, dry_run: bool, as_json: bool
) -> None:
    """Publish the finished FOLDER (or the one of that name here) on a hub, in one commit.

    Only what has been shown to match is published: the folder needs a report that passed, about these very bytes.

    \b
      vidweights push i3d-rgb-scratch-k400 --repo me/i3d-rgb-scratch-k400 --dry-run
      vidweights push i3d-rgb-scratch-k400 --repo me/i3d-rgb-scratch-k400 --hub ./hub     (no account needed)
    """
    planned = publish.plan(folder, repo, hub.opened(where))
    pushed = None
    if not dry_run:
        with progress_bar() as progress:
            pushed = publish.push(planned, pull_request=pull_request, private=private, progress=progress)
    if as_json:
        print_json(_fields(planned, pushed))
    elif pushed is None:
        _show_plan(planned)
    else:
        _show(planned, pushed)


def _fields(planned: PushPlan, pushed: Pushed | None) -> dict[str, Any]:
    return {
        "hub": planned.hub.name,
        "repository": planned.repository,
        "head": planned.head,
        "files": [
            {"name": item.name, "bytes": item.file.size, "sha256": item.file.sha256, "state": item.state}
            for item in planned.items
        ],
        "kept": list(planned.others),
        "commit": pushed and pushed.commit,
        "already": pushed and pushed.already,
        "pull_request": pushed and pushed.pull_request,
        "pinned": pushed and pushed.pinned,
    }


def _show_plan(planned: PushPlan) -> None:
    at = f"at commit {planned.head}" if planned.head else "not there yet"
    click.echo(f"{planned.folder} -> {planned.repository} on {planned.hub.name} ({at})")
    rows = [(item.name, item.state, f"{item.file.size:,}", str(item.file.sha256)) for item in planned.items]
    table(("file", "on the hub", "bytes", "SHA-256"), rows)
    for name in planned.others:
        click.echo(f"kept there: {name}")
    size = sum(item.file.size for item in planned.changes)
    click.echo(f"{len(planned.changes)} of {len(planned.items)} files would be sent, {megabytes(size)}")


def _show(planned: PushPlan, pushed: Pushed) -> None:
    if pushed.already:
        click.echo(f"{planned.repository} on {planned.hub.name} has these very files already; nothing was done")
    elif pushed.pull_request:
        click.echo(f"opened {pushed.pull_request}")
    else:
        click.echo(f"published {len(planned.changes)} files in {planned.repository} on {planned.hub.name}")
    if not pushed.already:
        click.echo("every hash was read back from there, and is right")
    click.echo(f"to pin it: vidweights.load({pushed.pinned!r})")
