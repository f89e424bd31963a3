"""What people know of models on a hub: `from_pretrained`, `save_pretrained`, `push_to_hub`; strict, all three."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vidweights import dialects, folder, formats, run
from vidweights.errors import FormatError, PublishError, UsageError
from vidweights.families import FAMILIES
from vidweights.files import staged_folder
from vidweights.folder import FolderConfig, SourceRecord
from vidweights.formats.base import TensorInfo
from vidweights.layout import Array

if TYPE_CHECKING:
    from torch import Tensor

M = TypeVar("M", bound="PretrainedMixin")


class PretrainedMixin:
    """Loading and saving for the models of this package.

    Attributes:
        config: the family's configuration.
        origin: the finished folder that `vidweights.load` took the weights from; None for other weights.
    """

    config: Any
    origin: Path | None = None

    @classmethod
    def from_pretrained(cls: type[M], source: str | Path, *, revision: str | None = None, **options: Any) -> M:
        """A network with pretrained weights: `vidweights.load`, for this class.

        Every tensor must be there and be used; nothing is left as it was drawn.

        Args:
            source: as for `vidweights.load`.
            revision: a branch, tag or commit of `org/name`; as in `org/name@revision`.
            options: as for `vidweights.load`.

        Raises:
            UsageError: the weights are those of another class.
            VidweightsError: see `vidweights.load`.
        """
        from vidweights import pretrained

        named = source if revision is None else f"{source}@{revision}"
        model = pretrained.load(named, **options)
        if not isinstance(model, cls):
            raise UsageError(
                f"{named} holds a {type(model).__name__}, not a {cls.__name__}; vidweights.load takes any of them."
            )
        return model

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a finished folder that `load` and `from_pretrained` read.

        Weights that are still those of `origin` are written with its labels, card and report. Others are a network of
        one's own, of which nobody has shown anything yet, and count as unvalidated.

        Args:
            path: the folder.
            overwrite: replace a folder that is there.

        Raises:
            OutputError: something is in the way, or the disk refuses.
        """
        target = Path(path)
        with staged_folder(target, overwrite=overwrite, mark=folder.CONFIG) as stage:
            files = self._write_weights(stage)
            if self._unchanged(files):
                assert self.origin is not None
                for name in folder.package_files(self.origin, folder.read_config(self.origin)):
                    shutil.copyfile(self.origin / name, stage / name)
            else:
                self._describe(stage, target.name, files)
        return target

    def push_to_hub(
        self, repo: str, *, hub: str | Path | None = None, pull_request: bool = False, private: bool = False
    ) -> str:
        """Publish the folder that these weights were loaded from: `vidweights.push`.

        Returns:
            `org/name@commit`, which `load` takes.

        Raises:
            PublishError: the weights are not those of a folder, or it may not be published.
        """
        from vidweights import _converters

        with tempfile.TemporaryDirectory(prefix="vidweights-") as scratch:
            if not self._unchanged(self._write_weights(Path(scratch))):
                raise PublishError(
                    "these weights are not those of a folder that was shown to match: they were trained, drawn or "
                    "changed since. save_pretrained writes them, and `hf upload ORG/NAME FOLDER` shares them as they "
                    "are."
                )
        assert self.origin is not None
        return _converters.push(self.origin, repo, hub=hub, pull_request=pull_request, private=private)

    def _unchanged(self, files: Mapping[str, str]) -> bool:
        before = self._before()
        return before is not None and dict(before.files) == files and before.config == self.config

    def _before(self) -> FolderConfig | None:
        """The `config.json` of `origin`, if that is still there."""
        if self.origin is not None:
            with suppress(FormatError):
                return folder.read_config(self.origin)
        return None

    def _write_weights(self, path: Path) -> dict[str, str]:
        """Write `model.safetensors`; returns its name and SHA-256. Equal weights give equal bytes."""
        state: dict[str, Tensor] = self.state_dict()  # type: ignore[attr-defined]
        writer_type = formats.writer("safetensors")
        infos = [TensorInfo(key, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in state.items()]
        outputs = writer_type.order(infos)
        _, files = run.write(outputs, _arrays(state, [info.key for info in outputs]), writer_type, path)
        return files

    def _describe(self, path: Path, name: str, files: Mapping[str, str]) -> None:
        """Write the `config.json` of a network of one's own, with what its origin says of its input."""
        (family,) = (family for family in FAMILIES.values() if family.configure is type(self.config))
        dialect = dialects.native(family.name)
        before = self._before()
        made = FolderConfig(
            name=name,
            family=family.name,
            config=self.config,
            dialect=dialect.name,
            format="safetensors",
            main=next(iter(files)),
            files=dict(files),
            facts=dialect.all_facts,
            source=SourceRecord(dialect.name, "torch", dict(before.files) if before else {}, ""),
            input=before.input if before else None,
        )
        if before is not None and self.origin is not None and before.config.num_classes == self.config.num_classes:
            made = replace(made, labels=before.labels)
            if before.labels:
                shutil.copyfile(self.origin / folder.LABELS, path / folder.LABELS)
        folder.write_json(path / folder.CONFIG, made.to_json())


def _arrays(state: Mapping[str, Tensor], keys: list[str]) -> Iterator[tuple[str, Array]]:
    import torch

    for key in keys:
        tensor = state[key].detach().cpu().contiguous()
        # numpy has no bfloat16; its elements travel as 16-bit patterns.
        yield key, (tensor.view(torch.int16).numpy().view("<u2") if tensor.dtype == torch.bfloat16 else tensor.numpy())
