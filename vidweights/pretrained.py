"""Pretrained weights by name, folder or file: `load`, `state_dict`, `list_weights`, `download`, `weights`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from vidweights import catalog, dialects, folder, formats, home, identity, images, models, plan
from vidweights import hub as hubs
from vidweights.catalog import Release
from vidweights.dialects import Recognition
from vidweights.dialects.base import Dialect
from vidweights.errors import FormatError, IntegrityError, OutputError, PlanError, UnavailableError, UsageError
from vidweights.families import FAMILIES
from vidweights.folder import FolderConfig
from vidweights.formats.base import Checkpoint
from vidweights.layout import Array
from vidweights.progress import Progress, silent
from vidweights.run import stream

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vidweights.clips import ClipTransform


# Endings of checkpoint files; `weights/mine.pt` is a path that is wrong, and no repository.
_FILES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt", ".index", ".h5", ".hdf5", ".npz", ".pkl", ".pickle")


class UnvalidatedWarning(UserWarning):
    """Weights were loaded of which nobody has shown that they compute what the release computes."""


@dataclass(frozen=True)
class Weights:
    """What is known of a release without loading it.

    Attributes:
        name: the catalog name.
        release: its entry in the catalog: hashes, licence, published accuracy.
    """

    name: str
    release: Release

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.release.labels

    def transforms(self) -> ClipTransform:
        """The release's preprocessing: frames (T, H, W, C) to a float32 clip (C, T, H, W).

        Its `video` method makes the clips (N, C, T, H, W) of a whole video.
        """
        from vidweights.clips import ClipTransform, Preprocessing

        return ClipTransform(Preprocessing.from_json(self.release.input))

    @property
    def folder(self) -> Path | None:
        """The finished folder on this machine, made here or fetched from a hub; None if there is none."""
        path = home.weights_folder(self.name)
        return path if (path / folder.CONFIG).is_file() else hubs.RepositoryCache(self.published).find(None)

    @property
    def published(self) -> str:
        """The repository on a hub that has it, if it is published there."""
        return f"{hubs.ORGANISATION}/{self.name}"

    @property
    def state(self) -> str:
        """`passed`, `failed` or `unvalidated` for what is on this machine; `damaged`, or `absent` if nothing is."""
        if self.folder is None:
            return "absent"
        try:
            return folder.validation_state(self.folder, folder.read_config(self.folder))
        except FormatError:
            return "damaged"


def weights(name: str) -> Weights:
    """The record of a release.

    Raises:
        UsageError: no release has that name.
    """
    if name in images.names():
        raise _flat(name)
    return Weights(name, catalog.get(name))


def list_weights() -> tuple[str, ...]:
    """The names that `load` takes."""
    return catalog.names()


def download(
    source: str | Path, *, hub: str | Path | None = None, build: bool = False, progress: Progress = silent
) -> Path:
    """The finished folder that a name means, on this machine, every file compared with the hash that is published.

    A name is looked for here, then on the hub; what comes from there is kept in the cache that `HF_HOME` names.

    Args:
        source: the name of a release, or of a network that was inflated here; `org/name` or `org/name@revision` on a
            hub; or a path, which is returned as it is.
        hub: an address, or a folder that serves as a hub; `$VIDWEIGHTS_HUB`, `$HF_ENDPOINT` or huggingface.co if
            not given.
        build: port a release that no hub has from what its authors published. The bytes are the same; what is made
            here is not validated, since that takes the source's framework: `vidweights port` does both.
        progress: told of the bytes.

    Raises:
        UsageError: no such name.
        UnavailableError: no place has it; the message lists those that were tried, and what to do.
        IntegrityError: a hub sends other bytes than were published.
    """
    if isinstance(source, str) and source in catalog.names():
        return _release_folder(source, hub, build=build, progress=progress)
    if isinstance(source, str) and (home.weights_folder(source) / folder.CONFIG).is_file():
        return home.weights_folder(source)  # what `vidweights inflate` made
    path = home.expanded(source)
    with suppress(OSError):  # a name that is too long, say
        if path.name and (path.exists() or path.with_name(path.name + ".index").exists()):
            return folder.folder_of(path) or path
    if str(source) in images.names():
        raise _flat(str(source))
    if path.suffix not in _FILES and (repository := hubs.Repository.parse(str(source))) is not None:
        try:
            return hubs.opened(hub).folder(repository, progress)
        except hubs.NotHereError as error:
            here = (str(path.absolute()), "no such file or folder")
            raise hubs.NotHereError(str(repository), [here, *error.attempts], list(error.advice)) from error
    raise UsageError(
        f"{str(source)!r} is neither a file or folder here, nor org/name on a hub, nor the name of a release; "
        f"{catalog.hint(str(source))}"
    )


def _release_folder(name: str, hub: str | Path | None, *, build: bool, progress: Progress) -> Path:
    """The folder of a release: made here before, published, or, with `build`, made now."""
    record, made = weights(name), home.weights_folder(name)
    if (made / folder.CONFIG).is_file():
        return made
    try:
        found = hubs.opened(hub).folder(hubs.Repository(record.published), progress)
    except hubs.NotHereError as error:
        if not build:
            raise _not_published(record, error) from error
        return _built(record)
    _check_release(record.release, found)
    return found


def _not_published(record: Weights, error: hubs.NotHereError) -> hubs.NotHereError:
    """The same error, with the ways to make the weights from the release itself."""
    files = [record.release.url_of(file) for file in record.release.files]
    facts = [] if record.release.size is None else [record.release.shown_size]
    facts += [f"SHA-256 {record.release.weights_sha256}"] if record.release.weights_sha256 else []
    return hubs.NotHereError(
        f"{record.name} ({', '.join(facts)})" if facts else record.name,
        [(str(home.weights_folder(record.name)), "not there"), *error.attempts],
        [
            ("to make it from the release", f"vidweights port {record.name}, or load({record.name!r}, build=True)"),
            *hubs.without_network(f"{record.name} --build"),
            *(("the release itself", file) for file in files),
            ("which, once fetched, is taken by", f"vidweights port {record.name} --weights FOLDER_WITH_THESE_FILES"),
        ],
    )


def _built(record: Weights) -> Path:
    """The folder of a release, ported from what its authors published."""
    from vidweights import _converters

    made = home.weights_folder(record.name)
    try:
        _converters.port(record.name, validate=False)
    except OutputError:
        if not (made / folder.CONFIG).is_file():  # unless another process was faster
            raise
    return made


def _check_release(release: Release, found: Path) -> None:
    """Hold what was published under a release's name to the catalog: its bytes, or else its tensors.

    Raises:
        IntegrityError: they are not those of the release, bit for bit.
    """
    config = folder.read_config(found)
    file = found / config.main
    if release.weights_sha256 is not None:
        if config.files[config.main] != release.weights_sha256:
            raise IntegrityError(
                f"{found} was published as {release.name} and is not it: its weights have the SHA-256 "
                f"{config.files[config.main]}, and the catalog has {release.weights_sha256}. "
                f"Make it from the release: vidweights port {release.name}"
            )
        return
    mark = f"release {release.name}"  # remembered beside the file's hash
    if not release.crc32c or home.is_known(file, mark):  # of a release that nobody has read, the names are all there is
        return
    with formats.open_checkpoint(file) as checkpoint:
        match = identity.compare(checkpoint, dialects.recognise(checkpoint.tensors), release)
    if not match.whole:
        raise IntegrityError(
            f"{found} was published as {release.name} and is not it: {len(match.differing)} of {match.total} tensors "
            f"differ ({match.some}). Make it from the release: vidweights port {release.name}"
        )
    home.remember(file, config.files[config.main], mark)


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    num_classes: int | None = None,
    hub: str | Path | None = None,
    build: bool = False,
    **options: Any,
) -> nn.Module:
    """A network with pretrained weights, in evaluation mode.

    Loading is strict: every tensor is there, in its shape, and is used. The SHA-256 of a finished folder is
    checked, once for each file and state of it.

    Args:
        source: a release's name, that of a network which was inflated here (`resnet18-i3d-resnet-mean`), `org/name`
            or `org/name@revision` on a hub, a finished folder, or a checkpoint file in any known format and dialect.
        device: where the parameters go.
        dtype: what floating parameters become; as stored if not given.
        num_classes: a new, randomly initialised head of that many classes, for fine-tuning.
        hub, build: see `download`.
        options: keyword arguments of the model (`dropout=0.5`, `head_pool="mean"`).

    Raises:
        UsageError: `source` is neither a known name nor a path, or `dtype` is none of torch's.
        UnavailableError: the weights cannot be had, or torch is not installed.
        FormatError: the file is damaged, or is no checkpoint.
        IntegrityError: the weights are not those that the folder's `config.json` describes.
        PlanError: the tensors are not those of a known network.
    """
    path = download(source, hub=hub, build=build)
    family, config, tensors = _read(path, str(device))
    import torch

    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype {dtype!r}: expected one of torch's, such as torch.float16")
    with torch.device("meta"):
        model = models.build(family, config, **options)
    if dtype is not None:
        tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
    _check_shapes(family, config, tensors)
    model.load_state_dict(tensors, strict=True, assign=True)
    if (path / folder.CONFIG).is_file():
        model.origin = path  # type: ignore[assignment]
    if num_classes is not None:
        model.reset_head(num_classes)  # type: ignore[operator]
    return model.eval()


@overload
def state_dict(
    source: str | Path,
    *,
    dialect: str | None = None,
    framework: Literal["torch"] = "torch",
    hub: str | Path | None = None,
    build: bool = False,
) -> dict[str, torch.Tensor]: ...
@overload
def state_dict(
    source: str | Path,
    *,
    dialect: str | None = None,
    framework: Literal["numpy"],
    hub: str | Path | None = None,
    build: bool = False,
) -> dict[str, Array]: ...
@overload
def state_dict(
    source: str | Path,
    *,
    dialect: str | None = None,
    framework: Literal["flax"],
    hub: str | Path | None = None,
    build: bool = False,
) -> dict[str, Any]: ...
def state_dict(
    source: str | Path,
    *,
    dialect: str | None = None,
    framework: Literal["torch", "numpy", "flax"] = "torch",
    hub: str | Path | None = None,
    build: bool = False,
) -> dict[str, torch.Tensor] | dict[str, Array] | dict[str, Any]:
    """The tensors of a release, folder or file under the names of a dialect, for the code that people already use.

        torchvision.models.video.r2plus1d_18().load_state_dict(state_dict(NAME, dialect="torchvision"))
        i3d_jax_model.apply(state_dict(NAME, dialect="i3d-jax", framework="flax"), clip)

    Args:
        source: as for `load`.
        dialect: `piergiaj`, `i3d-jax`, `deepmind-rgb`, ...; or the beginning of one, such as `torchvision` or
            `mmaction2`, of which that one is taken which can hold this network; the names of our own model if not
            given.
        framework: `torch` for torch tensors, `numpy` for arrays (needs no framework; bfloat16 comes as its 16-bit
            patterns, in uint16), `flax` for arrays in the nested dictionaries that `apply` takes.
        hub, build: see `download`.

    Raises:
        UsageError: no such name, dialect or framework.
        PlanError: the dialect cannot hold this network.
    """
    if framework not in ("torch", "numpy", "flax"):
        raise UsageError(f"framework {framework!r}: expected 'torch', 'numpy' or 'flax'")
    path = download(source, hub=hub, build=build)
    config = folder.read_config(path).config if (path / folder.CONFIG).is_file() else None
    _, arrays = _arrays(_checkpoint_path(path), dialect, config)
    if framework == "torch":
        return _to_torch(arrays)
    plain = {key: array for key, (array, _) in arrays.items()}
    return _nested(plain) if framework == "flax" else plain


def _nested(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays in dictionaries of dictionaries, by the dots of their keys."""
    tree: dict[str, Any] = {}
    for key, array in arrays.items():
        *path, leaf = key.split(".")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[leaf] = array
    return tree


def finished_folder(source: str | Path, progress: Progress = silent) -> Path:
    """The finished folder of a name or a path, downloaded if it is not on this machine yet.

    Raises:
        UsageError: `source` is neither, or a checkpoint outside a finished folder.
        UnavailableError: the weights cannot be had.
    """
    path = download(source, progress=progress)
    if not (path / folder.CONFIG).is_file():
        raise UsageError(
            f"{path} is not in a finished folder, and says nothing of its input and its classes. "
            "`vidweights inspect` says what it is, `vidweights port` makes a folder of it."
        )
    return path


def _flat(name: str) -> UsageError:
    return UsageError(
        f"{name} is the name of 2D weights, not of a video network. To make one of them: vidweights inflate {name}"
    )


def _checkpoint_path(path: Path) -> Path:
    """The checkpoint of a finished folder, its hashes checked; any other path as it is."""
    if not (path / folder.CONFIG).is_file():
        return path
    config = folder.read_config(path)
    folder.verify_files(path, config)
    return path / config.main


def _read(path: Path, device: str) -> tuple[str, Any, dict[str, torch.Tensor]]:
    """Family, configuration and state dict of a folder or file, for our own model."""
    config = folder.read_config(path) if (path / folder.CONFIG).is_file() else None
    _warn_unless_validated(path, config)
    file = _checkpoint_path(path)
    if config is not None and config.format == "safetensors" and config.native:
        return config.family, config.config, _load_file(file, device)
    found, arrays = _arrays(file, None)
    # A folder says what no tensor tells.
    return (
        found.dialect.family.name,
        config.config if config else found.config,
        {k: t.to(device) for k, t in _to_torch(arrays).items()},
    )


def _check_shapes(family: str, config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare what a folder holds with the network that its `config.json` describes."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {tensor.name: tensor.shape for tensor in FAMILIES[family].tensors(config)}
    differing = [
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise PlanError(f"the weights are not those of {config}", {"differing": differing}, "Make the folder again.")


def _load_file(file: Path, device: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise _no_torch() from error
    try:
        return load_file(file, device=device)
    except SafetensorError as error:
        raise FormatError(f"{file} is damaged ({error}). Make or fetch the folder again.") from error


def _arrays(file: Path, dialect: str | None, config: Any = None) -> tuple[Recognition, dict[str, tuple[Array, str]]]:
    """What a checkpoint is; and every tensor of it, with the name of its dtype, under the names of a dialect.

    `config` is what the file's folder says of what no tensor tells.
    """
    with formats.open_checkpoint(file) as checkpoint:
        found = dialects.recognise(checkpoint.tensors)
        planned = _planned(checkpoint, found, dialect, config)
        arrays = {step.target.key: (array, step.dtype) for step, array in stream(planned, checkpoint) if step.target}
    return found, arrays


def _planned(checkpoint: Checkpoint, found: Recognition, dialect: str | None, config: Any) -> plan.Plan:
    """The plan into a dialect, or into the first of those that begin with its name and can hold the network."""
    family = found.dialect.family.name
    several = [d for d in dialects.DIALECTS.values() if d.family.name == family and d.name.startswith(f"{dialect}-")]
    if dialect is None or dialect in dialects.DIALECTS or not several:
        several = [dialects.get(dialect) if dialect else dialects.native(family)]

    def into(target: Dialect) -> plan.Plan:
        return plan.make(checkpoint.tensors, target, found=found, config=config, name=str(checkpoint.path))

    for candidate in several[:-1]:
        with suppress(PlanError):
            return into(candidate)
    return into(several[-1])


def _to_torch(arrays: Mapping[str, tuple[Array, str]]) -> dict[str, torch.Tensor]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise _no_torch() from error

    def convert(array: Array, dtype: str) -> torch.Tensor:
        # A memory map is read-only; a parameter must be writable.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor

    return {key: convert(array, dtype) for key, (array, dtype) in arrays.items()}


def _no_torch() -> UnavailableError:
    return UnavailableError("torch is not installed: pip install 'vidweights[torch]'")


def _warn_unless_validated(path: Path, config: FolderConfig | None) -> None:
    state = "unvalidated" if config is None else folder.validation_state(path, config)
    if state == "passed":
        return
    what = "failed their validation" if state == "failed" else "were not validated"
    command = f"vidweights inspect {path}" if config is None else f"vidweights validate {path}"
    warnings.warn(
        f"the weights in {path} {what}: nobody has shown that they compute what a release computes. Run: {command}",
        UnvalidatedWarning,
        stacklevel=4,
    )
