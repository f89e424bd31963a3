"""A hub that is a folder: repositories, commits and branches by the rules of a server, without an account.

DIR/org/name/refs/main              the newest commit
DIR/org/name/refs/pr/1              that of a pull request
DIR/org/name/commits/COMMIT/        its files, whole
DIR/org/name/commits/COMMIT.json    parent, title, and size and hashes of each file
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vidweights.errors import FormatError, IntegrityError, OutputError, PublishError
from vidweights.files import replace_text
from vidweights.folder import CONFIG, json_text, read_config
from vidweights.hub import GIT_ID, MAIN, NotHereError, RemoteFile, Repository, Revision
from vidweights.progress import Progress, silent


@dataclass(frozen=True)
class FolderHub:
    """The hub in a folder."""

    root: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.root)

    def describe(self, repository: Repository) -> Revision | None:
        """The files of a revision, with their hashes; None if there is no such repository or revision.

        Raises:
            FormatError: the record of the commit is damaged.
        """
        place = self.root / repository.name
        commit = self._commit(place, repository.revision or MAIN)
        if commit is None or not (place / "commits" / commit).is_dir():
            return None
        record = place / "commits" / f"{commit}.json"
        try:
            files = {
                name: RemoteFile(**facts) for name, facts in json.loads(record.read_text("utf-8"))["files"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{record} is damaged ({error}). Push again.") from error
        return Revision(repository.name, commit, files)

    @staticmethod
    def _commit(place: Path, revision: str) -> str | None:
        if GIT_ID.fullmatch(revision):
            return revision
        ref = place / "refs" / revision.removeprefix("refs/").removeprefix("heads/")
        if ".." in Path(revision).parts or not ref.is_file():
            return None
        return ref.read_text(encoding="utf-8").strip()

    def folder(self, repository: Repository, progress: Progress = silent) -> Path:
        """See `vidweights.hub.Hub.folder`; the folder is the commit itself, and nothing is copied."""
        revision = self.describe(repository)
        if revision is None:
            where = self.root / repository.name
            there = "has no such revision" if where.is_dir() else "not there"
            raise NotHereError(
                str(repository), [(str(where), there)], [("to publish it there", "vidweights push --hub DIR")]
            )
        folder = self.root / repository.name / "commits" / revision.commit
        for name, file in revision.files.items():
            path = folder / name
            if not path.is_file():
                raise FormatError(f"{path} is missing. Push {repository.name} again.")
            if (found := file.differs(path)) is not None:
                raise IntegrityError(f"{path} is damaged: {found}. Push {repository.name} again.")
        if CONFIG not in revision.files:
            raise FormatError(f"{folder} has no {CONFIG}: it holds no weights of vidweights.")
        read_config(folder)
        return folder

    def repositories(self) -> Iterator[Repository]:
        """Every repository of the hub."""
        for ref in sorted(self.root.glob(f"*/*/refs/{MAIN}")):
            yield Repository(ref.parents[1].relative_to(self.root).as_posix())

    def commit(
        self, repository: str, files: Mapping[str, Path], title: str, parent: str | None, *, pull: bool = False
    ) -> tuple[str, str]:
        """Add a commit that has these files beside those of its parent; it is there whole, or not at all.

        Args:
            repository: `org/name`; it is made if it is not there and `parent` is None.
            files: {name: the file to copy}.
            title: what the commit says.
            parent: the commit that `main` must be.
            pull: leave `main` alone, and name the commit `refs/pr/N`.

        Returns:
            The commit, and the name that now points to it.

        Raises:
            PublishError: `main` is another commit.
            OutputError: the disk refuses.
        """
        place = self.root / repository
        try:
            with self._locked(place):
                head = self._commit(place, MAIN)
                if head != parent:
                    raise PublishError(f"{place} has the commit {head} since, not {parent}")
                ref = _next_pull(place) if pull else MAIN
                made = self._write(repository, files, title, parent)
                (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
                replace_text(place / "refs" / ref, made + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror or error}. Nothing was published.") from error
        return made, f"refs/{ref}" if pull else ref

    def _write(self, repository: str, files: Mapping[str, Path], title: str, parent: str | None) -> str:
        commits = self.root / repository / "commits"
        for left in commits.glob(".*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        stage = commits / f".{secrets.token_hex(8)}"
        stage.mkdir(parents=True)
        try:
            described: dict[str, Any] = {}
            if parent is not None:
                before = self.describe(Repository(repository, parent))
                for name, file in before.files.items() if before else ():
                    if name not in files:
                        _same_file(commits / parent / name, stage / name)
                        described[name] = asdict(file)
            for name, path in files.items():
                shutil.copyfile(path, stage / name)
                described[name] = asdict(RemoteFile.of(stage / name))
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            record = json_text({"parent": parent, "title": title, "date": date, "files": described})
            made = hashlib.sha1(record.encode(), usedforsecurity=False).hexdigest()
            replace_text(commits / f"{made}.json", record)
            stage.rename(commits / made)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return made

    @contextmanager
    def _locked(self, place: Path) -> Iterator[None]:
        from filelock import FileLock

        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            yield


def _next_pull(place: Path) -> str:
    numbers = [int(path.name) for path in (place / "refs" / "pr").glob("*") if path.name.isdecimal()]
    return f"pr/{max(numbers, default=0) + 1}"


def _same_file(old: Path, new: Path) -> None:
    """The file of another commit once more, sharing its bytes where the disk can."""
    with suppress(OSError):
        os.link(old, new)
        return
    shutil.copyfile(old, new)
