"""Publish a finished folder on a hub: what has been shown to match, in one commit, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vidweights.errors import FormatError, IntegrityError, PublishError, UsageError
from vidweights.folder import CARD, CONFIG, LABELS, FolderConfig, named, package_files, read_config, validation_state
from vidweights.folder_hub import FolderHub
from vidweights.hub import Hub, RemoteFile, Repository, Revision, offline
from vidweights.progress import Progress, silent
from vidweights.remote_hub import HubError, RemoteHub, again, quiet, told
from vidweights_converters import package

State = Literal["new", "changed", "same"]

# Weights that were drawn by a seed go only where the name says so, as the hub's own test networks do (tiny-random-...).
_RANDOM = "random"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Item:
    """A file of the package beside what the hub has under its name."""

    name: str
    file: RemoteFile
    state: State


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        folder: the finished folder, and `config` what it says of itself.
        hub: where to, and `repository` which one.
        head: the commit that the hub has now; None if there is no such repository.
        items: every file of the package.
        others: files that the hub has beside them, and keeps.
    """

    folder: Path
    config: FolderConfig
    hub: Hub
    repository: str
    head: str | None
    items: tuple[Item, ...]
    others: tuple[str, ...]

    @property
    def changes(self) -> tuple[Item, ...]:
        """What is not on the hub yet."""
        return tuple(item for item in self.items if item.state != "same")


@dataclass(frozen=True)
class Pushed:
    """Where a package is now.

    Attributes:
        commit: to pin: the same bytes for ever.
        already: whether it was there before, and nothing was done.
        pull_request: its address or name, if one was opened instead.
    """

    repository: str
    commit: str
    already: bool = False
    pull_request: str | None = None

    @property
    def pinned(self) -> str:
        """What `load` takes."""
        return f"{self.repository}@{self.commit}"


def plan(folder: Path, repository: str, hub: Hub) -> PushPlan:
    """Check that a folder may be published, hash its package, and compare it with what the hub has.

    Args:
        folder: the finished folder, or the name of one in `$VIDWEIGHTS_HOME`.
        repository: `org/name`.
        hub: see `vidweights.hub.opened`.

    Raises:
        UsageError: no such folder, or `repository` is no name of a repository.
        PublishError: it has not been shown to match, or may not be published for another reason.
        IntegrityError: the weights are not those that its `config.json` and report are about.
        HubError: the hub cannot be asked.
    """
    folder = named(folder)
    parsed = Repository.parse(repository)
    if parsed is None or parsed.revision is not None:
        raise UsageError(f"--repo {repository!r}: expected org/name")
    config = read_config(folder)
    # Read now: what was verified before does not count here.
    files = {name: RemoteFile.of(folder / name) for name in package_files(folder, config)}
    _check(folder, config, files, repository)
    there = hub.describe(Repository(repository))
    items = tuple(Item(name, file, _state(file, name, there)) for name, file in files.items())
    others = tuple(sorted(set(there.files) - set(files))) if there else ()
    return PushPlan(folder, config, hub, repository, there.commit if there else None, items, others)


def _state(file: RemoteFile, name: str, there: Revision | None) -> State:
    remote = there.files.get(name) if there else None
    if remote is None:
        return "new"
    same = remote.sha256 == file.sha256 if remote.sha256 else remote.git_blob == file.git_blob
    return "same" if same else "changed"


def _check(folder: Path, config: FolderConfig, files: Mapping[str, RemoteFile], repository: str) -> None:
    """Refuse what may not be published.

    Raises:
        IntegrityError, PublishError: the first reason.
    """
    for name, sha256 in _bound(config).items():
        found = files[name].sha256 if name in files else "nothing"
        if found != sha256:
            raise IntegrityError(
                f"{folder / name} has the SHA-256 {found}, and {CONFIG} expects {sha256}: it was changed "
                "after it was made. Make the folder again."
            )
    if config.main != WEIGHTS:
        raise PublishError(
            f"{folder} holds {config.main}, in the format {config.format}; a repository holds {WEIGHTS}, which runs "
            "no code and loads everywhere. Port it with --format safetensors."
        )
    if (state := validation_state(folder, config)) != "passed":
        reason = "its validation failed" if state == "failed" else "it has no report about these very weights"
        raise PublishError(
            f"{folder} has not been shown to compute what its source computes: {reason}. "
            f"Run: vidweights validate {folder}"
        )
    package.check_tensors(folder, config)
    _check_card(folder, config, repository)


def _bound(config: FolderConfig) -> dict[str, str]:
    """{file: SHA-256} of what `config.json` binds."""
    labels = {LABELS: str(config.labels["sha256"])} if config.labels else {}
    return {**config.files, **labels}


def _check_card(folder: Path, config: FolderConfig, repository: str) -> None:
    about = _metadata(folder / CARD)
    if config.drawn:
        if _RANDOM not in repository.partition("/")[2].lower():
            raise PublishError(
                f"{folder} was made of random weights, and is not pretrained. To share it as a test network, "
                f"give --repo a name that says so: {repository}-{_RANDOM}"
            )
    elif not about.get("license"):
        raise PublishError(
            f"{folder / CARD} states no licence of the weights. Ask whoever trained them, and add the line "
            "`license: ...` to the block between the two `---` at its beginning."
        )


def _metadata(card: Path) -> Mapping[str, Any]:
    """The block of metadata at the beginning of a card."""
    import yaml

    text = card.read_text(encoding="utf-8")
    block = text.removeprefix("---\n").partition("\n---\n") if text.startswith("---\n") else ("", "", "")
    try:
        about = yaml.safe_load(block[0]) if block[1] else None
    except yaml.YAMLError as error:
        raise FormatError(f"the metadata at the beginning of {card} is no YAML: {error}") from error
    if not isinstance(about, dict):
        raise FormatError(f"{card} has no block of metadata between two lines `---` at its beginning.")
    return about


def push(
    planned: PushPlan, *, pull_request: bool = False, private: bool = False, progress: Progress = silent
) -> Pushed:
    """Publish what was planned in one commit, and read it back.

    Args:
        planned: see `plan`.
        pull_request: open a pull request; `main` is left as it is.
        private: if the repository has to be made, make it private.
        progress: told of the steps.

    Raises:
        PublishError: the hub has another commit since, or does not allow it.
        HubError: the hub failed; the message says whether the commit is there.
        OutputError: a folder hub cannot be written.
    """
    if not planned.changes:
        assert planned.head is not None
        return Pushed(planned.repository, planned.head, already=True)
    if pull_request and planned.head is None:
        raise PublishError(f"{planned.repository} is not there yet, so nothing can be asked of it; push without --pr.")
    if isinstance(planned.hub, FolderHub):
        pushed = _into_folder(planned, planned.hub, pull_request)
    else:
        assert isinstance(planned.hub, RemoteHub)
        pushed = _Push(planned, planned.hub, progress).run(pull_request, private)
    _read_back(planned, pushed)
    return pushed


def _title(planned: PushPlan) -> str:
    return f"Add {planned.config.name}" if planned.head is None else f"Update {planned.config.name}"


def _changed(planned: PushPlan) -> PublishError:
    return PublishError(
        f"{planned.repository} on {planned.hub.name} has changed since it was read (it was at {planned.head or 'no'} "
        "commit). Nothing was published. Look at what was added there; then push again, or with --pr."
    )


def _into_folder(planned: PushPlan, hub: FolderHub, pull: bool) -> Pushed:
    files = {item.name: planned.folder / item.name for item in planned.changes}
    try:
        commit, ref = hub.commit(planned.repository, files, _title(planned), planned.head, pull=pull)
    except PublishError as error:
        raise _changed(planned) from error
    return Pushed(planned.repository, commit, pull_request=ref if pull else None)


def _read_back(planned: PushPlan, pushed: Pushed) -> None:
    """Compare what the hub now says of every file with what was sent.

    Raises:
        IntegrityError: they differ.
    """
    there = again(lambda: planned.hub.describe(Repository(pushed.repository, pushed.commit)))
    differing = [item.name for item in planned.items if _state(item.file, item.name, there) != "same"]
    if differing:
        raise IntegrityError(
            f"{pushed.pinned} on {planned.hub.name} has other bytes than were sent: {', '.join(differing)}. "
            "Do not use that commit; push again."
        )


class _Push:
    """A push to a server."""

    def __init__(self, planned: PushPlan, hub: RemoteHub, progress: Progress) -> None:
        self.planned, self.hub, self.progress = planned, hub, progress

    def run(self, pull: bool, private: bool) -> Pushed:
        """Upload and commit; tried again only where that cannot publish twice."""
        if name := offline():
            raise HubError(f"nothing was published: {name} is set")
        with _allowed(self.planned):
            again(self._who)
            head = self.planned.head
            if head is None:
                head = again(lambda: self._create(private))
            self.planned = replace(self.planned, head=head)
            self.progress("uploading", 0, 1)
            return self._pull(head) if pull else self._commit(head)

    def _who(self) -> None:
        """Fail before anything is uploaded if the token is not known."""
        if self.hub.token is None:
            raise HubError(
                f"{self.hub.name} needs to know who pushes: log in with `hf auth login`, or set HF_TOKEN", 401
            )
        with told(self.hub.name):
            self.hub.api.whoami()

    def _create(self, private: bool) -> str:
        """The first commit of a new repository.

        Raises:
            PublishError: somebody else made it in the meantime, and put something there.
        """
        with told(self.hub.name):
            self.hub.api.create_repo(self.planned.repository, private=private, exist_ok=True)
        there = self.hub.describe(Repository(self.planned.repository))
        if there is None or set(there.files) - {".gitattributes"}:
            raise _changed(self.planned)
        return there.commit

    def _commit(self, head: str) -> Pushed:
        """One commit on `main`, whose parent must be `head`; so a try that was carried out cannot be repeated."""

        def send() -> Pushed:
            try:
                return Pushed(self.planned.repository, self._send(head).oid)
            except HubError as error:
                if (landed := self._landed(head)) is not None:
                    return landed
                # The client tries everything again but the commit itself.
                error.again &= error.status is None or _of_commit(error)
                raise

        return again(send)

    def _landed(self, head: str) -> Pushed | None:
        """After a failure: the commit if it is on the hub all the same, None if `main` is as it was.

        Raises:
            PublishError: `main` is another commit, with other files.
        """
        there = again(lambda: self.hub.describe(Repository(self.planned.repository)))
        if there is None or there.commit == head:
            return None
        if any(_state(item.file, item.name, there) != "same" for item in self.planned.items):
            raise _changed(self.planned)
        return Pushed(self.planned.repository, there.commit)

    def _pull(self, head: str) -> Pushed:
        """A pull request; not tried again once it may be there, since a second one would be opened."""
        try:
            info = self._send(head, create_pr=True)
        except HubError as error:
            if error.again:
                raise HubError(
                    f"{error}. It is not known whether the pull request is there: look at "
                    f"{self.hub.name}/{self.planned.repository}/discussions before you push again.",
                    error.status,
                ) from error
            raise
        return Pushed(self.planned.repository, info.oid, pull_request=info.pr_url)

    def _send(self, head: str, *, create_pr: bool = False) -> Any:
        """Upload and commit by the client; its operations serve once."""
        from huggingface_hub import CommitOperationAdd

        folder = self.planned.folder
        additions = [CommitOperationAdd(item.name, str(folder / item.name)) for item in self.planned.changes]
        report = f"Weights SHA-256 {self.planned.config.files[WEIGHTS]}; validated, see validation.json."
        with told(self.hub.name), _xet_told(self.hub), quiet():
            return self.hub.api.create_commit(
                self.planned.repository,
                additions,
                commit_message=_title(self.planned),
                commit_description=report,
                parent_commit=head,
                create_pr=create_pr,
            )


def _of_commit(error: HubError) -> bool:
    """Whether it was the request for the commit, after all uploads, that the hub answered so."""
    response = getattr(error.__cause__, "response", None)
    return response is not None and "/commit/" in str(response.request.url)


@contextmanager
def _allowed(planned: PushPlan) -> Iterator[None]:
    """Say of a refusal that nothing was published.

    Raises:
        PublishError: the hub refuses the token, the repository, the parent or the card.
    """
    try:
        yield
    except HubError as error:
        if error.status == 412:
            raise _changed(planned) from error
        if error.status in (400, 401, 403, 404):
            raise PublishError(f"{error}. Nothing was published.") from error
        raise
    except ValueError as error:  # the client asks the hub what it thinks of the card
        said = " ".join(str(error).split())[:300]
        raise PublishError(f"{planned.hub.name} refuses the card {planned.folder / CARD}: {said}") from error


@contextmanager
def _xet_told(hub: RemoteHub) -> Iterator[None]:
    """Name the switch for a hub without Xet, of which the client says only that an address is not found."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "xet-write-token" in str(error) and "404" in str(error):
            raise HubError(
                f"{hub.name} has no Xet, by which this client uploads. Nothing was published. "
                "Set HF_HUB_DISABLE_XET=1, and push again."
            ) from error
        raise
