"""`vidweights port`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from vidweights.errors import UnavailableError, UsageError, ValidationError
from vidweights_cli.output import (
    clip_option,
    console,
    dry_run_option,
    json_option,
    no_validate_option,
    overwrite_option,
    print_json,
    progress_bar,
    table,
)
from vidweights_converters import port as porting
from vidweights_converters.port import Outcome, Request


@click.command("port")
@click.argument("release")
@click.option("--checkpoint", metavar="NAME", help="Port this one checkpoint of RELEASE; it must succeed.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Take the weights from this file or folder, in any format and dialect, and look nowhere else.",
)
@click.option("--to", metavar="DIALECT", help="The naming to write; that of our own torch model if not given.")
@click.option(
    "--format",
    "container",
    type=click.Choice(["safetensors", "tf", "torch", "h5", "flax"]),
    help="The container to write; what users of the dialect expect if not given.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write DIR/NAME for each checkpoint; without it they go where vidweights.load finds them by name.",
)
@no_validate_option
@overwrite_option
@dry_run_option
@clip_option
@json_option
def command(
    release: str,
    checkpoint: str | None,
    weights: Path | None,
    to: str | None,
    container: str | None,
    out: Path | None,
    no_validate: bool,
    overwrite: bool,
    dry_run: bool,
    clip: Path | None,
    as_json: bool,
) -> int:
    """Port RELEASE into a finished folder, and prove that it computes what the release computes.

    RELEASE is a short name (i3d-tf), a name from `vidweights list`, or, with --weights, a family (i3d) for a
    checkpoint of your own. A short name ports every checkpoint whose bytes can be had.

    \b
      vidweights port i3d-tf
      vidweights port i3d-tf --checkpoint rgb_scratch --to piergiaj --format torch --out .
      vidweights port i3d --weights my_finetuned.pt --to piergiaj --no-validate
    """
    wanted = porting.requests(
        release,
        checkpoint=checkpoint,
        weights=weights,
        to=to,
        format=container,
        out=out,
        validate=not no_validate,
        overwrite=overwrite,
        clip=clip,
    )
    if clip is not None and (no_validate or dry_run):
        raise UsageError("--clip is for the validation, which --no-validate and --dry-run leave out.")
    with progress_bar() as progress:
        outcomes = porting.plan_all(wanted, progress) if dry_run else porting.port_all(wanted, progress)
    if len(outcomes) == 1 and outcomes[0].error is not None:
        if not as_json:
            _show_report(outcomes[0])
        raise outcomes[0].error
    if as_json:
        print_json([_fields(outcome, dry_run) for outcome in outcomes])
    elif dry_run:
        _show_plans(outcomes)
    else:
        _show(outcomes)
    failure = porting.failure(outcomes)
    return failure.exit_code if failure else 0


def _fields(outcome: Outcome, dry_run: bool) -> dict[str, Any]:
    request, config = outcome.request, outcome.config
    fields: dict[str, Any] = {"name": request.name, "done": outcome.error is None and not dry_run}
    if outcome.error is not None:
        return {**fields, "error": {"type": type(outcome.error).__name__, "message": str(outcome.error)}}
    assert outcome.plan is not None
    fields |= {"origin": outcome.origin, "folder": str(request.folder), "plan_sha256": outcome.plan.sha256}
    if dry_run:
        return {**fields, "plan": outcome.plan.to_json()}
    assert config is not None
    return {
        **fields,
        "files": dict(config.files),
        "left": _left(outcome),
        "validation": outcome.report and outcome.report.to_json(),
    }


def _show(outcomes: tuple[Outcome, ...]) -> None:
    for outcome in outcomes:
        _show_report(outcome)
    table(("checkpoint", "result", "where, or why not"), [_row(outcome) for outcome in outcomes])
    for outcome in outcomes:
        for reason, count in _left(outcome).items():
            click.echo(f"{outcome.request.name}: {count} tensors of the source were left: {reason}")
        for fact in outcome.plan.differences if outcome.plan else ():
            click.echo(f"{outcome.request.name}: the {fact.fact.replace('_', ' ')} differs in the code of the target.")
            click.echo(f"  source  {fact.source}\n  target  {fact.target}")
        for note in outcome.notes:
            click.echo(f"{outcome.request.name}: {note}")
    if any(isinstance(outcome.error, UnavailableError) for outcome in outcomes):
        click.echo("To port one that is not here: vidweights port RELEASE --checkpoint NAME says what to fetch.")


def _left(outcome: Outcome) -> Counter[str]:
    """How many tensors of the source were left, by reason."""
    return Counter(reason for _, reason in outcome.plan.ignored) if outcome.plan else Counter()


def _show_report(outcome: Outcome) -> None:
    """Print the report of an outcome, one that failed its validation included."""
    found = outcome.error.report if isinstance(outcome.error, ValidationError) else outcome.report
    if found is None:
        return
    from vidweights_converters import report

    click.echo(f"\n{outcome.request.name}, {outcome.request.folder}")
    report.render(found, console())


def _row(outcome: Outcome) -> tuple[str, str, str]:
    name = outcome.request.release.checkpoint if outcome.request.release else outcome.request.name
    if outcome.error is None:
        state = "validated" if outcome.report else "written, not validated"
        return name, state, f"{outcome.request.folder}\nfrom {outcome.origin}"
    attempts = getattr(outcome.error, "attempts", None)
    if attempts is not None:
        return name, "unavailable", "\n".join(f"{place}: {reason}" for place, reason in attempts)
    return name, "unavailable" if isinstance(outcome.error, UnavailableError) else "failed", str(outcome.error)


def _show_plans(outcomes: tuple[Outcome, ...]) -> None:
    for outcome in outcomes:
        if outcome.plan is None:
            click.echo(f"{outcome.request.name}: {outcome.error}")
            continue
        _show_plan(outcome.request, outcome)


def _show_plan(request: Request, outcome: Outcome) -> None:
    planned = outcome.plan
    assert planned is not None
    click.echo(f"{request.name}: {planned.source.name} -> {planned.target.name}, from {outcome.origin}")
    click.echo(f"would write {request.folder} ({request.format}), {len(planned.outputs)} tensors")
    rows = []
    for step in planned.steps:
        source = f"{step.source.key} {step.source.layout}" if step.source else f"constant {step.constant}"
        target = f"{step.target.key} {step.target.layout}" if step.target else f"dropped if all are {step.constant}"
        rows.append((source, target, " x ".join(map(str, step.target_shape))))
    table(("source", "target", "shape"), rows)
    for key, reason in planned.ignored:
        click.echo(f"left: {key} ({reason})")
    for fact in planned.differences:
        click.echo(f"fact differs: {fact.fact}: {fact.source} -> {fact.target}")
    click.echo(f"plan SHA-256 {planned.sha256}")
