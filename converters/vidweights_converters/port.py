"""Port a released checkpoint: find it, plan, stream it into a finished folder, and prove what was written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidweights import catalog, dialects, formats, home, identity, plan, run, sources
from vidweights.catalog import Release
from vidweights.clips import read_clip
from vidweights.dialects import Recognition, recognise
from vidweights.dialects.base import Dialect
from vidweights.errors import (
    IntegrityError,
    OutputError,
    PlanError,
    UnavailableError,
    UsageError,
    VidweightsError,
)
from vidweights.families import FAMILIES
from vidweights.families.resnet3d import RESNET3D, named
from vidweights.files import git_blob_id_of, refuse_existing, sha256_of, staged_folder
from vidweights.folder import (
    CONFIG,
    FolderConfig,
    SourceRecord,
    folder_of,
    provenance,
    read_config,
    write_json,
    write_labels,
)
from vidweights.formats.base import Checkpoint, Writer
from vidweights.plan import Plan, Step
from vidweights.progress import Progress, silent
from vidweights_converters import package

if TYPE_CHECKING:
    from vidweights_converters.report import Report

# The container that a framework's users expect.
DEFAULT_FORMATS = {"torch": "safetensors", "tensorflow": "tf", "flax": "flax", "caffe2": "flax", "keras": "h5"}


@dataclass(frozen=True)
class Request:
    """What is to be ported, and how.

    Attributes:
        name: the folder's name: that of the release, or the stem of a person's own file.
        release: the catalogued release that the source must be; None for a person's own checkpoint.
        weights: the file or folder that the person has.
        target: the dialect to write, and `format` its container.
        out: the folder in which the finished folder appears.
        clip: a real clip to validate with, beside the seeded ones.
        network: values that the configuration of a person's own checkpoint must have, by the name that was given.
    """

    name: str
    release: Release | None
    weights: Path | None
    target: Dialect
    format: str
    out: Path
    validate: bool = True
    overwrite: bool = False
    clip: Path | None = None
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The finished folder."""
        return self.out / self.name


@dataclass(frozen=True)
class Outcome:
    """What became of one request: a folder, and `notes` on it, or the error that kept it from being made."""

    request: Request
    plan: Plan | None = None
    origin: str | None = None
    config: FolderConfig | None = None
    report: Report | None = None
    notes: tuple[str, ...] = ()
    error: VidweightsError | None = None


def requests(
    name: str,
    *,
    checkpoint: str | None = None,
    weights: Path | None = None,
    to: str | None = None,
    format: str | None = None,
    out: Path | None = None,
    validate: bool = True,
    overwrite: bool = False,
    clip: Path | None = None,
) -> tuple[Request, ...]:
    """The ports that a name means.

    Args:
        name: a collection (`i3d-tf`), a release (`i3d-rgb-scratch-k400`), or networks (`r2plus1d`, `r2plus1d_18`),
            for all their releases. With `weights` also a family (`i3d`) or networks, for a checkpoint of one's own; one
            with a published hash is the release that it belongs to.
        checkpoint: one checkpoint of the collection.
        weights: a file or folder to take the weights from, instead of looking for them.
        to: the dialect to write; our own if not given.
        format: `safetensors`, `tf`, `torch`, `h5` or `flax`; what users of the dialect expect if not given.
        out: where the folders appear; `$VIDWEIGHTS_HOME/weights`, from which `load` takes them, if not given.

    Raises:
        UsageError: an unknown name, or a combination that means nothing.
    """
    if weights is not None and not weights.exists() and not weights.with_name(weights.name + ".index").exists():
        raise UsageError(f"--weights {weights}: no such file or folder.")
    network, family = named(name), name if name in FAMILIES else RESNET3D.name
    chosen: tuple[Release | None, ...]
    if name in FAMILIES:
        if weights is None or checkpoint is not None:
            raise UsageError(f"{name} is a family: give your own checkpoint with --weights, without --checkpoint.")
        chosen = (None,)
    elif network is None:
        chosen = catalog.select(name, checkpoint)
    elif weights is not None and checkpoint is None:
        chosen = (_published_as(weights),)
    else:
        chosen = _releases_of(name, network, checkpoint)
    if weights is not None and weights.is_file() and len(chosen) > 1:
        names = ", ".join(release.checkpoint for release in chosen if release)
        raise UsageError(
            f"--weights {weights} is one file and {name} has several checkpoints; add --checkpoint ({names})."
        )
    own_name = _own_name(weights) if weights is not None and chosen[0] is None else name
    target = dialects.get(to) if to else dialects.native(chosen[0].family if chosen[0] else family)
    container = format or DEFAULT_FORMATS[target.framework]
    formats.writer(container)  # an unknown format is told before anything is looked for
    return tuple(
        Request(
            name=release.name if release else own_name,
            release=release,
            weights=weights,
            target=target,
            format=container,
            out=home.home() / "weights" if out is None else out,
            validate=validate,
            overwrite=overwrite,
            clip=clip,
            network=network or {},
        )
        for release in chosen
    )


def _published_as(weights: Path) -> Release | None:
    """The release whose published hash a file has."""
    found = sha256_of(weights) if weights.is_file() else None
    for release in catalog.releases() if found else ():
        known = [file.sha256 or file.sha256_begins for file in release.files]
        if found and len(known) == 1 and known[0] and found.startswith(known[0]):
            return release
    return None


def _releases_of(name: str, network: Mapping[str, Any], checkpoint: str | None) -> tuple[Release, ...]:
    """The releases of networks, all or one."""
    found = [release for release in catalog.releases() if release.family == RESNET3D.name]
    found = [release for release in found if not _unlike(release.config, network)]
    chosen = tuple(release for release in found if checkpoint in (None, release.checkpoint, release.name))
    if not chosen:
        there = ", ".join(release.name for release in found) or "none"
        raise UsageError(
            f"{name} has no release{f' {checkpoint!r}' if checkpoint else ''} in the catalog; it has: {there}"
        )
    return chosen


def _unlike(config: Any, network: Mapping[str, Any]) -> list[str]:
    """How a configuration differs from the networks of a name."""
    have = {name: getattr(config, name, None) for name in network}
    return [f"{name}: found {have[name]}, expected {value}" for name, value in network.items() if have[name] != value]


def _own_name(weights: Path) -> str:
    """The folder name of a person's own checkpoint: the name of its file, without what follows the first dot."""
    name = weights.resolve().name.split(".")[0]
    if not name or not name.isprintable():  # bytes that are no UTF-8 come as surrogates, which do not print
        raise UsageError(f"--weights {str(weights)!r}: its name gives no name for the folder; rename it.")
    if name in catalog.names():
        raise UsageError(
            f"--weights {weights} has the name of a release. If it is that release, run: vidweights port {name} "
            f"--weights {weights}; if it is a checkpoint of your own, rename it."
        )
    return name


@contextmanager
def opened(request: Request, progress: Progress = silent) -> Iterator[tuple[sources.Source, Checkpoint, Plan]]:
    """The located, opened and planned source of a request; nothing is written.

    Raises:
        UnavailableError: the weights cannot be had.
        FormatError: the file is damaged or is no checkpoint.
        PlanError: its tensors are not those of the network that was asked for.
        IntegrityError: it is such a network, but not this release.
    """
    if request.release is not None:
        source = sources.locate(request.release, request.weights, progress)
    else:
        assert request.weights is not None
        source = sources.Source(request.weights, f"--weights {request.weights}")
    with formats.open_checkpoint(source.path) as checkpoint:
        release = request.release
        config = release.config if release else _own_config(source.path)
        found = recognise(checkpoint.tensors)
        planned = plan.make(checkpoint.tensors, request.target, found=found, config=config, name=str(source.path))
        if differing := _unlike(planned.config, request.network):
            raise PlanError(
                f"{source.path} is not the network that was named",
                {"differing": differing},
                f"Name what it is, or the family alone: vidweights port {planned.source.family.name} --weights FILE",
            )
        if release is not None:
            known = _identity(checkpoint, found, release, source.path)
            source = replace(source, identity=known)
        yield source, checkpoint, planned


def _own_config(path: Path) -> Any:
    """The configuration of a folder that vidweights made, which tells more than its tensors; None for other files."""
    folder = folder_of(path)
    return read_config(folder).config if folder else None


def _identity(checkpoint: Checkpoint, found: Recognition, release: Release, path: Path) -> str:
    """How a checkpoint is known to be the release that it was declared to be.

    Raises:
        IntegrityError: it is not.
    """
    own = f"If it is a checkpoint of your own: vidweights port {release.family} --weights {path}"
    if not release.crc32c:
        try:
            known = [sources.check(path, file) for file, path in zip(release.files, checkpoint.files)]
        except IntegrityError as error:
            raise IntegrityError(f"{error} {own}") from error
        return f"the file has {known[0]}" if known[0] else "nothing was published that the file could be held to"
    match = identity.compare(checkpoint, found, release, recorded=True)
    if not match.whole:
        raise IntegrityError(
            f"{path} has the shape of {release.name} but is not it: {len(match.differing)} of {match.total} tensors "
            f"differ ({match.some}). {own}"
        )
    return f"all {match.total} tensors have the checksums of the release"


def port(request: Request, progress: Progress = silent) -> Outcome:
    """Carry out one request.

    The folder appears whole, or not at all: it is staged beside its place and renamed when everything in it,
    validation included, is done.

    Raises:
        VidweightsError: see `opened`; and ValidationError, OutputError, UnavailableError (no reference installed).
    """
    refuse_existing(request.folder, overwrite=request.overwrite, mark=CONFIG)
    keep_the_source(request.weights, request.folder)
    with opened(request, progress) as (source, checkpoint, planned):
        proof = _Proof(request, source, checkpoint, planned) if request.validate else None
        with staged_folder(request.folder, overwrite=request.overwrite, mark=CONFIG) as stage:
            config = _write(request, checkpoint, planned, stage, progress)
            report = proof.run(stage, config, planned, progress) if proof else None
            notes = package.finish(stage, config, report, before=request.folder)
    return Outcome(request, planned, source.origin, config, report, notes)


def keep_the_source(weights: Path | None, folder: Path) -> None:
    """Refuse a folder that would replace the file that it is made from."""
    if weights is None:
        return
    source, target = weights.resolve(), folder.resolve()
    if target == source or target in source.parents:
        raise OutputError(f"{folder} would replace the --weights that it is made from. Choose another --out.")


def _write(request: Request, checkpoint: Checkpoint, planned: Plan, stage: Path, progress: Progress) -> FolderConfig:
    """Write the weights, `config.json` and `labels.txt`; the source is hashed while its tensors are converted."""
    with ThreadPoolExecutor(1, thread_name_prefix="vidweights-hash") as pool:
        hashes = {path.name: pool.submit(sha256_of, path) for path in checkpoint.files}
        writer_type = formats.writer(request.format)
        main, files = write_weights(planned, checkpoint, writer_type, stage, progress)
        record = SourceRecord(
            dialect=planned.source.name,
            format=checkpoint.format,
            files={name: future.result() for name, future in hashes.items()},
            plan_sha256=planned.sha256,
        )
    release = request.release
    config = FolderConfig(
        name=request.name,
        family=planned.source.family.name,
        config=planned.config,
        dialect=planned.target.name,
        format=request.format,
        main=main,
        files=files,
        facts=planned.target.all_facts,
        source=record,
        input=dict(release.input) if release else None,
        labels=_labels(release, stage) if release else None,
        release=provenance(release) if release else None,
    )
    write_json(stage / CONFIG, config.to_json())
    return config


def _labels(release: Release, stage: Path) -> dict[str, Any] | None:
    """Write the labels of a release, where their order is known."""
    return write_labels(stage, release.labels, release.label_source["source"]) if release.labels else None


def write_weights(
    planned: Plan, checkpoint: Checkpoint, writer_type: type[Writer], folder: Path, progress: Progress = silent
) -> tuple[str, dict[str, str]]:
    """Stream the target's tensors into a file of `folder`; returns what `run.write` returns."""
    outputs = writer_type.order(planned.outputs)
    place = {info.key: index for index, info in enumerate(outputs)}

    def due(step: Step) -> int:
        return place[step.target.key] if step.target else -1

    found = run.stream(planned, checkpoint, due, reuse=True)
    arrays = ((step.target.key, array) for step, array in found if step.target)
    return run.write(outputs, arrays, writer_type, folder, progress)


class _Proof:
    """The references that can judge a port, chosen before anything is written.

    Raises:
        UnavailableError: torch is not installed, or no reference is.
    """

    def __init__(self, request: Request, source: sources.Source, checkpoint: Checkpoint, planned: Plan) -> None:
        from vidweights_converters import references

        if planned.config.num_classes == 0:
            raise UnavailableError(
                "validation compares logits, and this network has no head, so nothing was written. "
                "Port with --no-validate; the folder then counts as unvalidated."
            )
        if find_spec("torch") is None:
            raise UnavailableError(
                "validation runs the written network in torch, which is not installed, so nothing was written. "
                "pip install 'vidweights[torch]', or port with --no-validate; the folder then counts as unvalidated."
            )
        self.request, self.identity = request, source.identity
        self.checkpoint = checkpoint
        self.clip = read_clip(request.clip, planned.config.in_channels) if request.clip else None
        self.scratch = tempfile.TemporaryDirectory(prefix="vidweights-")
        try:
            self.selection = references.choose(checkpoint, planned.source.name, planned.prefix, self._tensorflow_source)
        except BaseException:
            self.scratch.cleanup()
            raise

    def _tensorflow_source(self) -> Path | None:
        """The release's own TensorFlow files: the source itself, or rebuilt from it and proved byte for byte."""
        if self.checkpoint.format == "tf":
            return self.checkpoint.path
        release = self.request.release
        if release is None or dialects.get(release.dialect).framework != "tensorflow":
            return None
        folder = Path(self.scratch.name)
        rebuilt = plan.make(self.checkpoint.tensors, dialects.get(release.dialect))
        main, _ = write_weights(rebuilt, self.checkpoint, formats.writer("tf"), folder)
        same = all(git_blob_id_of(folder / file.name) == file.git_blob for file in release.files)
        return folder / main if same else None

    def run(self, folder: Path, config: FolderConfig, planned: Plan, progress: Progress) -> Report:
        """Validate the weights in a folder.

        Raises:
            ValidationError: they do not compute what the release computes.
        """
        from vidweights_converters.validate import validate

        with self.scratch:
            return validate(
                folder,
                config,
                self.selection,
                self.checkpoint,
                planned,
                progress=progress,
                clip=self.clip,
                identity=self.identity,
            )


def prove_again(
    folder: Path, config: FolderConfig, weights: Path | None, clip: Path | None, progress: Progress = silent
) -> Report:
    """Validate a ported folder once more; see `vidweights_converters.revalidate`."""
    release = catalog.get(config.name) if config.release else None
    if release is None and weights is None:
        raise UsageError(f"{folder} was made from a checkpoint outside the catalog; give it with --weights.")
    request = Request(config.name, release, weights, config.speaks, config.format, folder.parent, clip=clip)
    with opened(request, progress) as (source, checkpoint, planned):
        if release is None:
            _check_source(folder, config, checkpoint)
        return _Proof(request, source, checkpoint, planned).run(folder, config, planned, progress)


def _check_source(folder: Path, config: FolderConfig, checkpoint: Checkpoint) -> None:
    """Refuse another source than the one that a folder of a person's own was made from."""
    found = {path.name: sha256_of(path) for path in checkpoint.files}
    if set(found.values()) != set(config.source.files.values()):
        raise IntegrityError(
            f"{checkpoint.path} is not what {folder} was made from: found SHA-256 {', '.join(found.values())}, "
            f"expected {', '.join(config.source.files.values())}. Give the file that was ported."
        )


def port_all(wanted: Sequence[Request], progress: Progress = silent) -> tuple[Outcome, ...]:
    """Carry out several requests; one that fails does not keep the others from being ported."""
    outcomes = []
    for request in wanted:
        try:
            outcomes.append(port(request, progress))
        except (PlanError, IntegrityError) as error:
            given = request.weights is not None and len(wanted) > 1
            outcomes.append(Outcome(request, error=_elsewhere(request, error) if given else error))
        except VidweightsError as error:
            outcomes.append(Outcome(request, error=error))
    return tuple(outcomes)


def _elsewhere(request: Request, error: VidweightsError) -> UnavailableError:
    """One path was given for a whole collection: it holds another checkpoint than this one."""
    return UnavailableError(f"{request.weights} does not hold it: {str(error).splitlines()[0]}")


def failure(outcomes: Sequence[Outcome]) -> VidweightsError | None:
    """What makes several ports a failure: the first error that is more than missing bytes, or that all are missing."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    grave = [error for error in errors if not isinstance(error, UnavailableError)]
    if grave:
        return grave[0]
    return errors[0] if errors and len(errors) == len(outcomes) else None


def plan_all(wanted: Sequence[Request], progress: Progress = silent) -> tuple[Outcome, ...]:
    """The plans of several requests; nothing is written."""
    outcomes = []
    for request in wanted:
        try:
            with opened(request, progress) as (source, _, planned):
                outcomes.append(Outcome(request, planned, source.origin))
        except VidweightsError as error:
            outcomes.append(Outcome(request, error=error))
    return tuple(outcomes)
