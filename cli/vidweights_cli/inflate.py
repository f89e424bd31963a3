"""`vidweights inflate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidweights import inflation
from vidweights.errors import UsageError, ValidationError
from vidweights.inflation import Options
from vidweights.kernels import Method
from vidweights_cli.output import (
    console,
    dry_run_option,
    json_option,
    megabytes,
    no_validate_option,
    overwrite_option,
    print_json,
    printable,
    progress_bar,
    table,
)
from vidweights_converters import inflate as inflating
from vidweights_converters.inflate import Outcome, Request

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport

_TARGETS = {
    "i3d-resnet": "every kernel inflated, time strided as space",
    "i3d-resnet-nl": "5x7x7 stem, the first kernel of alternating blocks inflated",
    "r2plus1d": "every 3D kernel factorised into a spatial and a temporal one",
    "f-r2d": "no kernel inflated: the 2D network on each frame",
    "i3d": "the Inception v1 of the I3D paper",
    "s3d": "Inception v1, every 3D kernel factorised",
}


@click.command("inflate")
@click.argument("source")
@click.option(
    "--into", type=click.Choice(list(inflation.TARGETS)), help="The 3D network; i3d-resnet, or i3d for an Inception v1."
)
@click.option(
    "--method",
    type=click.Choice(inflation.METHODS),
    default="mean",
    show_default=True,
    help="mean: W/N at each of N steps. center: W in the middle. exact: pairs of planes, for r2plus1d and s3d.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Take the 2D weights from this file, in any format and known naming, and look nowhere else.",
)
@click.option("--random-init", type=click.IntRange(0), metavar="SEED", help="Draw the 2D weights: not pretrained.")
@click.option("--num-classes", type=click.IntRange(1), help="A new head of so many classes; the source's if not given.")
@click.option("--drop-head", is_flag=True, help="Leave the head out.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="What a new head is drawn by.")
@click.option("--in-channels", type=click.IntRange(1), help="Channels of the clips: 2 or 2L for optical flow.")
@click.option(
    "--time-padding",
    type=click.Choice(["replicate", "zero"]),
    default="replicate",
    show_default=True,
    help="What stands before the first and behind the last frame.",
)
@click.option(
    "--stem-pool",
    type=click.Choice(["keep", "none"]),
    default="keep",
    show_default=True,
    help="none: the released R3D line, which has no max-pool behind the stem. Initialisation only, no equality.",
)
@click.option(
    "--planes",
    type=click.Choice(["conv", "block"]),
    default="conv",
    help="r2plus1d: middle planes by the paper (conv) or as torchvision (block).",
)
@click.option(
    "--stem-planes",
    type=click.IntRange(1),
    help="r2plus1d: middle planes of the stem; the paper's 83 if not given (releases: 45).",
)
@click.option(
    "--allow-nan",
    is_flag=True,
    help="Inflate tensors with elements that are not finite too. No proof holds for them: give --no-validate.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write DIR/SOURCE-TARGET-METHOD; without it the folder goes where vidweights.load finds it by name.",
)
@no_validate_option
@overwrite_option
@dry_run_option
@json_option
def command(
    source: str,
    weights: Path | None,
    random_init: int | None,
    out: Path | None,
    no_validate: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Inflate the 2D ImageNet weights SOURCE into a 3D network, and prove that it computes what the 2D one does.

    SOURCE is resnet18 to resnet152 (torchvision), resnet50-v2, keras-resnet50, slim-resnet50, googlenet,
    slim-inception-v1, timm/resnet18.a1_in1k, ...; or, with --weights, a family (resnet, inception) for your own file.

    \b
      vidweights inflate resnet18
      vidweights inflate resnet50 --into r2plus1d --method exact --num-classes 400
      vidweights inflate resnet18 --weights resnet18-f37072fd.pth --out .
      vidweights inflate resnet18 --random-init 0
    """
    wanted = inflating.request(
        source,
        weights=weights,
        random_init=random_init,
        options=_options(**chosen),
        out=out,
        validate=not no_validate,
        overwrite=overwrite,
    )
    if not as_json:
        _announce(wanted)
    with progress_bar() as progress:
        try:
            outcome = (inflating.plan_only if dry_run else inflating.inflate)(wanted, progress)
        except ValidationError as error:
            if not as_json:
                _render(error.report)
            raise
    if as_json:
        print_json(_fields(outcome))
    elif dry_run:
        _show_plan(outcome)
    else:
        _show(outcome)


def _options(*, num_classes: int | None, drop_head: bool, stem_pool: str, method: Method, **others: Any) -> Options:
    if drop_head and num_classes is not None:
        raise UsageError("--drop-head and --num-classes exclude each other.")
    return Options(num_classes=0 if drop_head else num_classes, stem_pool=stem_pool == "keep", method=method, **others)


def _announce(wanted: Request) -> None:
    """What will be done, the choices that were not made included."""
    options = wanted.options
    head = {None: "kept", 0: "dropped"}.get(
        options.num_classes, f"new, {options.num_classes} classes, seed {options.seed}"
    )
    if options.num_classes is None and wanted.source is not None:
        head += f", {wanted.source.num_classes} classes"
    what = f" ({_TARGETS[wanted.into]})" if wanted.into in _TARGETS else ""
    title = wanted.source.title if wanted.source else str(wanted.weights)
    rows = [
        ("source", title if wanted.random_init is None else f"the shapes of {title}"),
        ("into", wanted.into + what),
        ("method", options.method),
        ("time padding", options.time_padding),
        ("head", head),
    ]
    if options.in_channels is not None:
        rows.append(("channels", f"{options.in_channels}, each the mean of the source's"))
    if not options.stem_pool:
        rows.append(("stem pool", "none: initialisation only, no equality"))
    if wanted.random_init is not None:
        rows.append(("weights", f"drawn by the seed {wanted.random_init}: NOT PRETRAINED"))
    _lines(rows)


def _lines(rows: list[tuple[str, str]]) -> None:
    """Names and values. A table of rich would look better, but importing it is felt in a job without validation."""
    for name, value in rows:
        click.echo(printable(f"{name:<13} {value}"))


def _render(report: EqualityReport) -> None:
    from vidweights_converters.equality_report import render

    render(report, console())


def _fields(outcome: Outcome) -> dict[str, Any]:
    wanted, config = outcome.request, outcome.config
    fields = {
        "name": wanted.name,
        "origin": outcome.origin,
        "folder": str(wanted.folder),
        "pretrained": wanted.random_init is None,
        "plan_sha256": outcome.plan.sha256,
    }
    if config is None:
        return {**fields, "parameters": outcome.plan.parameters, "plan": outcome.plan.to_json()}
    return {**fields, "files": dict(config.files), "validation": outcome.report and outcome.report.to_json()}


def _show(outcome: Outcome) -> None:
    wanted, config = outcome.request, outcome.config
    assert config is not None
    if outcome.report is not None:
        _render(outcome.report)
    state = "validated" if outcome.report else "written, not validated"
    if wanted.random_init is not None:
        state += ", NOT PRETRAINED"
    _lines([("network", wanted.name), ("result", state), ("from", outcome.origin), ("folder", str(wanted.folder))])
    for note in outcome.notes:
        click.echo(note)
    if prefix := outcome.plan.source.prefix:
        click.echo(f"the source's keys are wrapped in {prefix!r}, which was taken off")
    found = outcome.plan.source.dialect
    if wanted.source is not None and not inflating.speaks(wanted.source, found):
        click.echo(
            f"the file is in the naming {found.name}, which is not that of {wanted.source.name}: stride, padding, "
            "epsilon and, where it is known, the input are those of that naming"
        )
    for reason, count in _left(outcome).items():
        click.echo(f"{count} tensors of the source were left: {reason}")


def _left(outcome: Outcome) -> dict[str, int]:
    reasons = [reason for _, reason in outcome.plan.left]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def _show_plan(outcome: Outcome) -> None:
    planned = outcome.plan
    size = megabytes(sum(info.nbytes for info in planned.outputs))
    click.echo(
        f"would write {outcome.request.folder} ({size}), {len(planned.outputs)} tensors, "
        f"{planned.parameters:,} parameters, from {outcome.origin}"
    )
    rows = []
    for step in planned.steps:
        fields = step.rule.to_json()
        rule = " ".join(
            [fields.pop("rule"), *(f"{k}={v}" for k, v in fields.items() if not isinstance(v, dict | tuple))]
        )
        made_of = ", ".join(stored.key for stored, _ in step.sources) or "-"
        rows.append((made_of, rule, step.tensor.name, " x ".join(map(str, step.tensor.shape))))
    table(("2D tensors", "rule", "3D tensor", "shape"), rows)
    for key, reason in planned.left:
        click.echo(f"left: {key} ({reason})")
    click.echo(f"plan SHA-256 {planned.sha256}")
