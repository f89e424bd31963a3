"""`vidweights predict`."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from vidweights import footage, prediction
from vidweights.prediction import Verdict
from vidweights.pretrained import UnvalidatedWarning
from vidweights_cli.output import json_option, print_json, printable, progress_bar, table


@click.command("predict")
@click.argument("name")
@click.argument("video", type=click.Path(path_type=Path))
@click.option(
    "--flow",
    nargs=2,
    metavar="NAME FLOW",
    help="A flow network too, and the flow of the video: an .npy file (T, H, W, 2), or a folder of (H, W, 2).",
)
@click.option(
    "--clips",
    type=click.IntRange(min=1),
    help="How many clips, evenly spaced; as the release is measured if not given.",
)
@click.option(
    "--frames", type=click.IntRange(min=1), help="How long each clip is; as the release was trained on if not given."
)
@click.option("--fps", type=float, help="The rate of frames that come without one: a folder, or an .npy file.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to print.")
@click.option("--device", default="cpu", show_default=True, help="Where the network runs, such as cuda.")
@json_option
def command(
    name: str,
    video: Path,
    flow: tuple[str, str] | None,
    clips: int | None,
    frames: int | None,
    fps: float | None,
    top: int,
    device: str,
    as_json: bool,
) -> None:
    """What the network NAME says of VIDEO: the best classes, with their probabilities.

    NAME is a release, a network that was inflated here, org/name on a hub, or a finished folder. VIDEO is a video file,
    a folder of images, or an .npy file of frames (T, H, W, 3). Clips and scores are those of the release; the first
    line says what was sampled.

    \b
      vidweights predict i3d-rgb-scratch-k400 video.mp4
      vidweights predict i3d-rgb-scratch-k400 video.mp4 --clips 10
      vidweights predict i3d-rgb-imagenet-k400 video.mp4 --flow i3d-flow-imagenet-k400 flow.npy
    """
    names = (name, flow[0]) if flow else (name,)
    videos = (video, Path(flow[1])) if flow else (video,)
    for path in videos:
        footage.existing(path)  # before weights are fetched for nothing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with progress_bar() as progress:
            streams = [prediction.open_stream(one, device, progress=progress) for one in names]
            verdict = prediction.judge(
                streams, videos, clips=clips, frames=frames, fps=fps, device=device, progress=progress
            )
    for warning in caught:
        if not issubclass(warning.category, UnvalidatedWarning):
            continue  # of a library; that a video is repeated is said where the clips are described
        click.echo(f"vidweights: {printable(str(warning.message))}", err=True)
    if as_json:
        print_json(_fields(verdict, top))
    else:
        _show(verdict, top)


def _fields(verdict: Verdict, top: int) -> dict[str, object]:
    return {
        "streams": [view.to_json() for view in verdict.views],
        "classes": [
            {
                "class": number,
                "label": verdict.labels[number],
                "score": float(verdict.scores[number]),
                **({} if verdict.logits is None else {"logit": float(verdict.logits[number])}),
            }
            for number in verdict.order(top)
        ],
    }


def _show(verdict: Verdict, top: int) -> None:
    for view in verdict.views:
        click.echo(printable(f"{view.stream.name}: {view.describe()}"))
    headings = ("label", "score") if verdict.logits is None else ("label", "score", "logit")
    rows = []
    for number in verdict.order(top):
        row = [verdict.labels[number], f"{verdict.scores[number]:.2%}"]
        rows.append(row if verdict.logits is None else [*row, f"{verdict.logits[number]:.3f}"])
    table(headings, rows)
