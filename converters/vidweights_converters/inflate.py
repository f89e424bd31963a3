"""Inflate 2D ImageNet weights: find them, plan, stream the 3D network into a finished folder, and prove it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidweights import dialects, formats, home, image_sources, images, inflation, run
from vidweights.dialects import Recognition, recognise
from vidweights.dialects.base import Dialect
from vidweights.errors import (
    FormatError,
    IntegrityError,
    OutputError,
    PlanError,
    UnavailableError,
    UsageError,
)
from vidweights.files import md5_of, refuse_existing, sha256_of, staged_folder
from vidweights.folder import CONFIG, FolderConfig, SourceRecord, write_json, write_labels
from vidweights.formats.base import Checkpoint
from vidweights.images import ImageWeights
from vidweights.inflation import DEFAULT_TARGETS, Inflation, Options
from vidweights.progress import Progress, silent
from vidweights.random_init import RandomCheckpoint
from vidweights_converters import package, port

if TYPE_CHECKING:
    from vidweights_converters.equality_report import EqualityReport

FORMAT = "safetensors"
_FLAT_FAMILIES = tuple(DEFAULT_TARGETS)


@dataclass(frozen=True)
class Request:
    """What is to be inflated, and how.

    Attributes:
        source: the catalogued 2D weights; None for a person's own file.
        family: the family of the 2D network that was named.
        weights: the file that the person has.
        random_init: a seed, for weights that are drawn instead of read.
        options: target, method, and what else there is to choose.
        out: the folder in which the finished folder appears.
    """

    source: ImageWeights | None
    family: str
    weights: Path | None
    random_init: int | None
    options: Options
    out: Path
    validate: bool = True
    overwrite: bool = False

    @property
    def name(self) -> str:
        """The finished folder's name: source, target, method and, for drawn weights, their seed."""
        own = self.weights.resolve().name.lstrip(".").split(".")[0] if self.weights else ""
        parts = [self.source.name.replace("/", "-") if self.source else own, self.into, self.options.method]
        return "-".join([*parts, *([f"random{self.random_init}"] if self.random_init is not None else [])])

    @property
    def into(self) -> str:
        """The target."""
        return self.options.into or DEFAULT_TARGETS[self.family]

    @property
    def folder(self) -> Path:
        """The finished folder."""
        return self.out / self.name


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    request: Request
    plan: Inflation
    origin: str
    config: FolderConfig | None = None
    report: EqualityReport | None = None
    notes: tuple[str, ...] = ()


def request(
    name: str,
    *,
    weights: Path | None = None,
    random_init: int | None = None,
    options: Options = Options(),  # noqa: B008  (frozen)
    out: Path | None = None,
    validate: bool = True,
    overwrite: bool = False,
) -> Request:
    """The inflation that a name means.

    Args:
        name: of catalogued 2D weights (`resnet18`, `timm/resnet50.a1_in1k`, `slim-inception-v1`), or a family
            (`resnet`, `inception`) for a file of one's own, which `weights` must then give.
        weights: a file to take the weights from, instead of looking for them.
        random_init: a seed: draw the weights instead of reading any.
        options: what is wanted.
        out: where the folder appears; `$VIDWEIGHTS_HOME/weights`, from which `load` takes it, if not given.

    Raises:
        UsageError: an unknown name, or a combination that means nothing.
    """
    if weights is not None and random_init is not None:
        raise UsageError("--weights and --random-init exclude each other: weights are read, or they are drawn.")
    if random_init is not None and (type(random_init) is not int or random_init < 0):
        raise UsageError(f"random_init is a seed: expected an integer from 0 on, found {random_init!r}.")
    if weights is not None and not weights.exists():
        raise UsageError(f"--weights {weights}: no such file or folder.")
    if name in _FLAT_FAMILIES and weights is None:
        raise UsageError(f"{name} is a family: give your own checkpoint with --weights.")
    source = None if name in _FLAT_FAMILIES else images.get(name)
    family = source.family if source else name
    if options.into is None:
        options = replace(options, into=DEFAULT_TARGETS[family])
    where = home.home() / "weights" if out is None else out
    return Request(source, family, weights, random_init, options, where, validate, overwrite)


@dataclass(frozen=True)
class Opened:
    """A located, opened and planned 2D checkpoint; its files are hashed while it is being used."""

    wanted: Request
    checkpoint: Checkpoint
    origin: str
    plan: Inflation
    hashing: Future[dict[str, str]]

    @property
    def hashes(self) -> dict[str, str]:
        """{file name: SHA-256} of what was read; empty for drawn weights."""
        return {} if self.wanted.random_init is not None else self.hashing.result()

    @property
    def release(self) -> ImageWeights | None:
        """The catalogued weights, if the bytes are theirs: a file that a person gave may be another."""
        source = self.wanted.source
        if source is None or self.wanted.random_init is not None:
            return None
        # What was looked for has been compared with its published hash already.
        known = self.wanted.weights is None or is_published(source, self.checkpoint, self.hashes)
        return source if known else None


@contextmanager
def opened(wanted: Request, progress: Progress = silent) -> Iterator[Opened]:
    """The located, opened and planned source of a request; nothing is written but drawn weights, for the while.

    Raises:
        UnavailableError: the weights cannot be had.
        FormatError: the file is damaged or is no checkpoint.
        PlanError: its tensors are not those of the 2D network that was asked for.
    """
    with tempfile.TemporaryDirectory(prefix="vidweights-") as scratch:
        if wanted.random_init is None:
            path, origin = _located(wanted, progress)
        else:
            path, origin = _drawn(wanted, Path(scratch))
        hasher = ThreadPoolExecutor(1, thread_name_prefix="vidweights-hash")
        with formats.open_checkpoint(path) as checkpoint, hasher:
            hashing = hasher.submit(lambda: {file.name: sha256_of(file) for file in checkpoint.files})
            found = recognise(checkpoint.tensors)
            declared = _declared(wanted, found, checkpoint.path)
            planned = inflation.make(checkpoint.tensors, wanted.options, found=found, config=declared, name=str(path))
            yield Opened(wanted, checkpoint, origin, planned, hashing)


def is_published(weights: ImageWeights, checkpoint: Checkpoint, hashes: Mapping[str, str]) -> bool:
    """Whether a file has the SHA-256, or the MD5, that was published for these weights."""
    for file in weights.files:
        if file.sha256 and any(found.startswith(file.sha256) for found in hashes.values()):
            return True
        if file.md5 and any(md5_of(path) == file.md5 for path in checkpoint.files):
            return True
    return False


def _located(wanted: Request, progress: Progress) -> tuple[Path, str]:
    if wanted.source is not None:
        source = image_sources.locate(wanted.source, wanted.weights, progress)
        return source.path, source.origin
    assert wanted.weights is not None
    return wanted.weights, f"--weights {wanted.weights}"


def _drawn(wanted: Request, folder: Path) -> tuple[Path, str]:
    """Drawn weights as a file under the names of the source's dialect, so that a reference can read them."""
    if wanted.source is None or wanted.random_init is None:
        raise UsageError("--random-init draws the weights of a named source: resnet18, googlenet, ...")
    dialect = dialects.get(wanted.source.dialect)
    rows = dialect.table(_config_of(wanted.source))
    drawn = RandomCheckpoint(rows, wanted.random_init)
    writer_type = formats.writer(port.DEFAULT_FORMATS[dialect.framework])
    outputs = writer_type.order(drawn.tensors.values())
    arrays = ((info.key, drawn.read(info.key)) for info in outputs)
    try:
        main, _ = run.write(outputs, arrays, writer_type, folder)
    except OSError as error:
        why = error.strerror or error
        raise OutputError(
            f"cannot write the drawn weights in {folder.parent}: {why}. Set TMPDIR to a folder with room."
        ) from error
    return folder / main, f"drawn by the seed {wanted.random_init}, not pretrained"


def _config_of(source: ImageWeights) -> Any:
    """The 2D configuration of catalogued weights."""
    dialect = dialects.get(source.dialect)
    depth = {"depth": source.depth} if source.depth is not None else {}
    return dialect.family.configure(**{**dialect.settings, **depth, "num_classes": source.num_classes})


def _declared(wanted: Request, found: Recognition, path: Path) -> Any:
    """The configuration that the file must have: what was named, with what the dialect of the file settles.

    Raises:
        PlanError: the file holds a network of another family.
    """
    family = found.dialect.family.name
    if family != wanted.family:
        if family not in _FLAT_FAMILIES:
            return None  # a 3D network, which the plan refuses
        named = wanted.source.name if wanted.source else "what was named"
        raise PlanError(
            f"{path} holds a network of the family {family} ({found.dialect.name}); {named} is one of {wanted.family}",
            {},
            f"Give the file that was meant, or name what this one is: vidweights inflate {family} --weights FILE",
        )
    if wanted.source is None:
        return None
    # A file without a head (of Keras: "notop") is enough where the head is not kept.
    headless = wanted.options.num_classes is not None and found.config.num_classes == 0
    values = {"num_classes": 0 if headless else wanted.source.num_classes}
    if wanted.source.depth is not None:
        values["depth"] = wanted.source.depth
    return replace(found.config, **values) if _possible(found.config, values) else _config_of(wanted.source)


def _possible(config: Any, values: Mapping[str, Any]) -> bool:
    """Whether a configuration can have these values beside its own (a basic block has no 1x1 to stride on)."""
    with suppress(UsageError):
        replace(config, **values)
        return True
    return False


def inflate(wanted: Request, progress: Progress = silent) -> Outcome:
    """Carry out a request. The folder appears whole, or not at all; see `vidweights_converters.port.port`.

    Raises:
        VidweightsError: see `opened`; and ValidationError, OutputError, UnavailableError (torch is not installed).
    """
    refuse_existing(wanted.folder, overwrite=wanted.overwrite, mark=CONFIG)
    port.keep_the_source(wanted.weights, wanted.folder)
    if wanted.validate:
        _require_torch()
    with opened(wanted, progress) as source:
        with staged_folder(wanted.folder, overwrite=wanted.overwrite, mark=CONFIG) as stage:
            config = _write(wanted, source, stage, progress)
            report = _prove(stage, config, source, progress) if wanted.validate else None
            notes = package.finish(stage, config, report, before=wanted.folder)
        return Outcome(wanted, source.plan, source.origin, config, report, notes)


def plan_only(wanted: Request, progress: Progress = silent) -> Outcome:
    """The plan of a request; nothing is written."""
    with opened(wanted, progress) as source:
        return Outcome(wanted, source.plan, source.origin)


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise UnavailableError(
            "validation runs both networks in torch, which is not installed, so nothing was written. "
            "pip install 'vidweights[torch]', or inflate with --no-validate; the folder then counts as unvalidated."
        )


def _write(wanted: Request, source: Opened, stage: Path, progress: Progress) -> FolderConfig:
    """Write the weights, `config.json` and `labels.txt`."""
    planned, writer_type = source.plan, formats.writer(FORMAT)
    outputs = writer_type.order(planned.outputs)
    names = [info.key for info in outputs]
    arrays = inflation.stream(planned, source.checkpoint, names, reuse=True)
    main, files = run.write(outputs, arrays, writer_type, stage, progress)
    record = SourceRecord(
        dialect=planned.source.dialect.name,
        format="random" if wanted.random_init is not None else source.checkpoint.format,
        files=source.hashes,
        plan_sha256=planned.sha256,
    )
    config = FolderConfig(
        name=wanted.name,
        family=planned.family.name,
        config=planned.config,
        dialect=planned.target.name,
        format=FORMAT,
        main=main,
        files=files,
        facts=planned.target.all_facts,
        source=record,
        input=_input(wanted, planned),
        labels=_labels(wanted, stage),
        release=provenance(source.release) if source.release else None,
        inflation=_record(wanted, planned),
    )
    write_json(stage / CONFIG, config.to_json())
    return config


def _labels(wanted: Request, stage: Path) -> dict[str, Any] | None:
    """Write the labels of the source's head, where it is kept."""
    source = wanted.source
    if source is None or wanted.options.num_classes is not None:
        return None
    return write_labels(stage, source.labels, source.label_source["source"])


def _record(wanted: Request, planned: Inflation) -> dict[str, Any]:
    """What `config.json` says of the inflation: enough to plan it again."""
    return {
        "source": wanted.source.name if wanted.source else None,
        "source_family": planned.source.dialect.family.name,
        "source_config": planned.source.config.to_json(),
        "random_init": wanted.random_init,
        **asdict(planned.options),
        "left": [list(pair) for pair in planned.left],
    }


def _input(wanted: Request, planned: Inflation) -> dict[str, Any] | None:
    """The preprocessing of the source's images, frame by frame.

    None is known for another number of channels. A file in the naming of another code than the weights that were
    named has the preprocessing of that code, if it is known (Keras and TF-Slim have their own).
    """
    if wanted.source is None or planned.config.in_channels != 3:
        return None
    fields = wanted.source.input if speaks(wanted.source, planned.source.dialect) else _shared(planned.source.dialect)
    if fields is None:
        return None
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def speaks(weights: ImageWeights, dialect: Dialect) -> bool:
    """Whether weights were released by the code that a dialect is the naming of."""
    return dialects.get(weights.dialect).source == dialect.source


def _shared(dialect: Dialect) -> Mapping[str, Any] | None:
    """The preprocessing of all weights that were released in a naming; None if it is not one for all."""
    inputs = [weights.input for weights in map(images.get, images.names()) if speaks(weights, dialect)]
    return inputs[0] if inputs and all(fields == inputs[0] for fields in inputs) else None


def provenance(weights: ImageWeights) -> dict[str, Any]:
    """What `config.json` says of where 2D weights come from."""
    return {
        "title": weights.title,
        "source": weights.source,
        "licence": dict(weights.licence),
        "training": {"data": weights.training, "source": weights.source},
        "accuracy": dict(weights.accuracy),
        "resize": weights.resize,
    }


def _prove(folder: Path, config: FolderConfig, source: Opened, progress: Progress) -> EqualityReport:
    from vidweights_converters.equality import prove
    from vidweights_converters.references.images import choose, importable

    found = source.plan.source
    references, missing = choose(source.checkpoint.path, found.dialect.name, found.prefix)
    references, broken = importable(references)
    absents = (*missing, *broken)
    if not references:
        reasons = "".join(f"\n  {one.name}: {one.reason}" for one in absents)
        raise UnavailableError(f"nothing can run the 2D network, so nothing was written:{reasons}")
    return prove(folder, config, source.plan, source.checkpoint, references, absents, progress=progress)


def prove_again(
    folder: Path, config: FolderConfig, weights: Path | None, progress: Progress = silent
) -> EqualityReport:
    """Prove an inflated folder once more; see `vidweights_converters.revalidate`."""
    _require_torch()
    wanted = _request_of(folder, config, weights)
    with opened(wanted, progress) as source:
        if wanted.random_init is None and set(source.hashes.values()) != set(config.source.files.values()):
            found, expected = ", ".join(source.hashes.values()), ", ".join(config.source.files.values())
            raise IntegrityError(
                f"{source.checkpoint.path} is not what {folder} was made of: found SHA-256 {found}, expected "
                f"{expected}. Give that file with --weights."
            )
        if (fields := _input(wanted, source.plan)) != config.input:
            raise IntegrityError(
                f"{folder / CONFIG} states another input than its source has: found {config.input}, expected {fields}. "
                "Make the folder again."
            )
        return _prove(folder, config, source, progress)


def _request_of(folder: Path, config: FolderConfig, weights: Path | None) -> Request:
    """The request that a folder was made by."""
    try:
        made = dict(config.inflation or {})
        own = {name: made[name] for name in Options.__dataclass_fields__}
        source = images.get(made["source"]) if made["source"] else None
        family, seed = str(made["source_family"]), made["random_init"]
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ValueError(f"random_init {seed!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder / CONFIG} lacks or misnames {error}. Make the folder again.") from error
    if weights is None and seed is None and config.release is None:
        raise UsageError(f"{folder} was made of a file outside the catalog; give it with --weights.")
    return Request(source, family, weights, seed, Options(**own), folder.parent)
