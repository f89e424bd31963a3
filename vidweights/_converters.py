"""The one place where the library reaches down to the converters, and only when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def port(
    name: str,
    *,
    checkpoint: str | None = None,
    weights: str | Path | None = None,
    to: str | None = None,
    format: str | None = None,
    out: str | Path | None = None,
    validate: bool = True,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Port a release, or a checkpoint of one's own, and validate what was written.

    Args:
        name: a collection (`i3d-tf`), a release (`i3d-rgb-scratch-k400`) or, with `weights`, a family (`i3d`).
        checkpoint: one checkpoint of the collection; without it, all are ported whose bytes can be had.
        weights: a file or folder that has the weights.
        to: the dialect to write; that of our own model if not given.
        format: `safetensors`, `tf`, `torch`, `h5` or `flax`.
        out: where the folders appear; where `load` finds them by name, if not given.
        validate: prove that the written file computes what the release computes.
        overwrite: replace folders that exist.

    Returns:
        {name: finished folder}.

    Raises:
        VidweightsError: a port failed for another reason than that its bytes cannot be had, or none could be had.
    """
    from vidweights_converters import port as porting

    wanted = porting.requests(
        name,
        checkpoint=checkpoint,
        weights=Path(weights) if weights is not None else None,
        to=to,
        format=format,
        out=Path(out) if out is not None else None,
        validate=validate,
        overwrite=overwrite,
    )
    outcomes = porting.port_all(wanted)
    if (error := porting.failure(outcomes)) is not None:
        raise error
    return {outcome.request.name: outcome.request.folder for outcome in outcomes if outcome.error is None}


def validate(
    folder: str | Path, *, weights: str | Path | None = None, clip: str | Path | None = None
) -> Mapping[str, Any]:
    """Validate a finished folder again and renew its report.

    Args:
        folder: the folder, or the name of a release that is on this machine.
        weights: the source that it was made from; looked for as `port` does if not given.
        clip: an `.npy` file with a real clip, to use beside the seeded ones (`vidweights.clips.read_clip`).

    Returns:
        The report, as in `validation.json`.

    Raises:
        ValidationError: the weights do not compute what the release computes.
        UnavailableError: the source, or a framework to run it in, is not there.
    """
    from vidweights_converters import port as porting

    report: Mapping[str, Any] = porting.validate_folder(
        Path(folder),
        Path(weights) if weights is not None else None,
        Path(clip) if clip is not None else None,
    ).to_json()
    return report
