"""The one place where the library reaches down to the converters, and only when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidweights.errors import UsageError
from vidweights.inflation import Options
from vidweights.kernels import Method


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


def inflate(
    name: str,
    *,
    into: str | None = None,
    method: Method = "mean",
    weights: str | Path | None = None,
    random_init: int | None = None,
    out: str | Path | None = None,
    validate: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Inflate 2D ImageNet weights into a 3D network, and prove that it computes what the 2D one computes.

    Args:
        name: of 2D weights (`resnet18`, `googlenet`, `timm/resnet50.a1_in1k`, ...) or, with `weights`, a family
            (`resnet`, `inception`) for a file of one's own.
        into: `i3d-resnet`, `i3d-resnet-nl`, `r3d`, `mc2` to `mc5`, `rmc2` to `rmc5`, `f-r2d`, `r2plus1d`, `i3d` or
            `s3d`; `i3d-resnet` if not given, or `i3d` for an Inception v1.
        method: `mean`, `center` or, for `r2plus1d` and `s3d`, `exact`; docs/inflation.md says what each promises.
        weights: a file that has the 2D weights, in any format and naming that is known.
        random_init: a seed: draw the 2D weights, which are then not pretrained.
        out: where the folder appears; where `load` finds it by name, if not given.
        validate: prove the written network against independent executions of the 2D one.
        overwrite: replace a folder that exists.
        options: fields of `vidweights.inflation.Options`: `num_classes` (None keeps the head, 0 drops it),
            `in_channels`, `time_padding`, `stem_pool`, `planes`, `stem_planes`, `seed`, `allow_nan`.

    Returns:
        The finished folder.

    Raises:
        UsageError: an unknown name, or options that this network cannot have.
        UnavailableError: the weights cannot be had; the message says where they were looked for, and what to do.
        PlanError: the file holds another network.
        ValidationError: the written network does not compute what the 2D network computes.
    """
    from vidweights_converters import inflate as inflating

    unknown = [option for option in options if option not in Options.__dataclass_fields__]
    if unknown:
        raise UsageError(f"inflate has no option {', '.join(unknown)}; see vidweights.inflation.Options")
    wanted = inflating.request(
        name,
        weights=Path(weights) if weights is not None else None,
        random_init=random_init,
        options=Options(into=into, method=method, **options),
        out=Path(out) if out is not None else None,
        validate=validate,
        overwrite=overwrite,
    )
    return inflating.inflate(wanted).request.folder


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
    from vidweights_converters import revalidate

    report: Mapping[str, Any] = revalidate.validate_folder(
        Path(folder),
        Path(weights) if weights is not None else None,
        Path(clip) if clip is not None else None,
    ).to_json()
    return report


def push(
    folder: str | Path,
    repo: str,
    *,
    hub: str | Path | None = None,
    pull_request: bool = False,
    private: bool = False,
) -> str:
    """Publish a finished folder on a hub in one commit, and read every hash back.

    Args:
        folder: the folder, or the name of one that is on this machine; it needs a report that passed.
        repo: `org/name`; the repository is made if it is not there.
        hub: an address, or a folder that serves as a hub; `$VIDWEIGHTS_HUB`, `$HF_ENDPOINT` or huggingface.co if
            not given.
        pull_request: open a pull request, and leave `main` as it is.
        private: if the repository has to be made, make it private.

    Returns:
        `org/name@commit`, which `load` takes; the same bytes for ever.

    Raises:
        PublishError: it has not been shown to match, may not be published, or the hub has changed or refuses.
        UnavailableError: the hub cannot be reached, or failed.
    """
    from vidweights.hub import opened
    from vidweights_converters import publish

    planned = publish.plan(Path(folder), repo, opened(hub))
    return publish.push(planned, pull_request=pull_request, private=private).pinned
