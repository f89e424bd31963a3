"""Where 2D weights are looked for, how they are checked, and what is said when there are none. Loopback only."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vidweights import home, image_sources, images, sources
from vidweights.errors import UnavailableError
from vidweights.image_sources import locate
from vidweights.images import ImageWeights, PublishedFile

BYTES = b"a checkpoint" * 1000
SHA256 = hashlib.sha256(BYTES).hexdigest()
MAIN, OTHER = "c" * 40, "0" * 40
# Nothing listens on port 9 of the loopback, so it refuses at once.
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's machine: its own home folder, no network beyond the loopback, nothing in any cache."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("HF_", "HUGGINGFACE_", "TORCH_HOME", "KERAS_HOME")):
            monkeypatch.delenv(name)
    for name in ("VIDWEIGHTS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    return tmp_path


class _Server(ThreadingHTTPServer):
    """A hub, the storage that it sends on to, and an official server in one; `content` by the last part of the path."""

    content: dict[str, bytes]
    etag: str
    location: str
    requests: list[tuple[str, str, str | None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.server.requests.append((self.command, self.path, self.headers["Authorization"]))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        if "/resolve/main/model.safetensors" not in self.path:
            return self._answer(404, {})
        headers = {"X-Repo-Commit": MAIN, "X-Linked-Etag": f'"{self.server.etag}"', "X-Linked-Size": str(len(BYTES))}
        if not self.server.location:
            return self._answer(200, headers)
        return self._answer(302, {**headers, "Location": self.server.location})

    def do_GET(self) -> None:
        body = self.server.content.get(self.path.rsplit("/", 1)[-1])
        self._answer(200 if body is not None else 404, {}, body or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.content, server.requests = {"blob": BYTES, "net-0a1b2c3d.pth": BYTES}, []
    server.etag, server.location = SHA256, f"http://localhost:{server.server_port}/storage/blob"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def weights(url: str = CLOSED, hub: str | None = "timm/resnet18.tv_in1k") -> ImageWeights:
    """Weights like resnet18, whose files hold the bytes above."""
    files = (
        PublishedFile("net-0a1b2c3d.pth", f"{url}/models/net-0a1b2c3d.pth", SHA256[:8], mib=0.011),
        PublishedFile("net-old.pth", sha256=SHA256[:8]),
    )
    return replace(images.get("resnet18"), files=files, hub=hub)


def torch_hub(machine: Path) -> Path:
    folder = machine / "cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_by_the_hub(machine: Path, *revisions: tuple[str, bytes], name: str = "model.safetensors") -> Path:
    """A hub cache as huggingface_hub lays it out, with `main` at MAIN; the blob has the name of the first bytes."""
    repository = machine / "cache" / "huggingface" / "hub" / "models--timm--resnet18.tv_in1k"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    for revision, data in revisions:
        (repository / "snapshots" / revision).mkdir(parents=True)
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (repository / "snapshots" / revision / name).symlink_to(f"../../blobs/{blob.name}")
    return repository


def attempts(wanted: ImageWeights) -> dict[str, str]:
    with pytest.raises(sources.SourceUnavailableError) as caught:
        locate(wanted)
    return {place.split()[0] + " " + place.split()[1]: reason for place, reason in caught.value.attempts}


def reason(wanted: ImageWeights, place: str) -> str:
    return next(why for name, why in attempts(wanted).items() if name.startswith(place))


# --- what is on the machine -----------------------------------------------------------------------------------------


def test_a_given_file_is_taken_and_nothing_else_is_tried(machine: Path, server: _Server) -> None:
    (torch_hub(machine) / "net-0a1b2c3d.pth").write_bytes(BYTES)
    (machine / "mine.pth").write_bytes(b"anything")
    found = locate(weights(server.url), machine / "mine.pth")
    assert found == sources.Source(machine / "mine.pth", f"--weights {machine / 'mine.pth'}")
    assert server.requests == []


@pytest.mark.parametrize("name", ["net-old.pth", "model.safetensors", "pytorch_model.bin"])
def test_a_given_folder_is_searched_for_the_published_names(machine: Path, name: str) -> None:
    (machine / "some.txt").touch()
    (machine / name).write_bytes(BYTES)
    assert locate(weights(), machine).path == machine / name


def test_a_checkpoint_from_an_archive_is_found_in_a_given_folder(machine: Path) -> None:
    (machine / "inception_v1.ckpt").write_bytes(BYTES)
    assert locate(images.get("slim-inception-v1"), machine).path == machine / "inception_v1.ckpt"


@pytest.mark.parametrize("name", ["net-0a1b2c3d.pth", "net-old.pth"])
@pytest.mark.parametrize("variable", [None, "TORCH_HOME"])
def test_the_torch_hub_cache_is_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str | None
) -> None:
    folder = torch_hub(machine)
    if variable:
        monkeypatch.setenv(variable, str(machine / "elsewhere"))
        folder = machine / "elsewhere" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
    (folder / name).write_bytes(BYTES)
    found = locate(weights())
    assert found.path == folder / name
    assert found.origin == f"torch hub {folder}"


def test_torch_itself_looks_in_the_same_folder(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("torch.hub")
    for home_folder in (None, "~/there"):
        if home_folder:
            monkeypatch.setenv("TORCH_HOME", home_folder)
        wanted = Path(hub.get_dir()) / "checkpoints"
        wanted.mkdir(parents=True)
        (wanted / "net-old.pth").write_bytes(BYTES)
        assert locate(weights()).path == wanted / "net-old.pth"


def test_a_wrong_hash_in_a_cache_is_told_and_the_next_file_is_tried(machine: Path) -> None:
    folder = torch_hub(machine)
    (folder / "net-0a1b2c3d.pth").write_bytes(b"cut")
    assert f"found SHA-256 {hashlib.sha256(b'cut').hexdigest()}, expected {SHA256[:8]}" in reason(weights(), "torch")
    (folder / "net-old.pth").write_bytes(BYTES)
    assert locate(weights()).path == folder / "net-old.pth"


@pytest.mark.parametrize("variable", [None, "KERAS_HOME"])
def test_the_keras_cache_is_used_if_the_md5_is_the_published_one(
    machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    file = PublishedFile("net.h5", f"{CLOSED}/net.h5", md5=hashlib.md5(BYTES).hexdigest())
    wanted = replace(images.get("keras-resnet50"), files=(file,))
    folder = machine / ".keras" / "models"
    if variable:
        monkeypatch.setenv(variable, str(machine / "k"))
        folder = machine / "k" / "models"
    assert reason(wanted, "Keras") == "has no net.h5"
    folder.mkdir(parents=True)
    (folder / "net.h5").write_bytes(b"an older file of that name")
    assert f"expected {file.md5}" in reason(wanted, "Keras")
    (folder / "net.h5").write_bytes(BYTES)
    assert locate(wanted).path == folder / "net.h5"


@pytest.mark.parametrize("name", images.HUB_FILES)
def test_any_cached_revision_of_the_hub_is_used_and_main_first(machine: Path, name: str) -> None:
    repository = cached_by_the_hub(machine, (OTHER, b"older"), (MAIN, BYTES), name=name)
    assert locate(weights()).path == repository / "snapshots" / MAIN / name
    (repository / "snapshots" / MAIN / name).unlink()
    assert locate(weights()).path == repository / "snapshots" / OTHER / name


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_hub_cache_is_where_the_hub_says(machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    cached_by_the_hub(machine, (MAIN, BYTES))
    moved = machine / "moved" / "hub"
    moved.parent.mkdir()
    (machine / "cache" / "huggingface" / "hub").rename(moved)
    monkeypatch.setenv(variable, str(moved if variable == "HF_HUB_CACHE" else moved.parent))
    assert locate(weights()).path.is_relative_to(moved)


def test_a_damaged_blob_is_told_and_another_revision_is_tried(machine: Path) -> None:
    repository = cached_by_the_hub(machine, (MAIN, BYTES))
    (repository / "blobs" / SHA256).write_bytes(BYTES[:-1] + b"!")
    assert "it is damaged, or a copy that cannot be checked" in reason(weights(), "hub")
    (repository / "blobs" / hashlib.sha256(b"older").hexdigest()).write_bytes(b"older")
    (repository / "snapshots" / OTHER).mkdir()
    (repository / "snapshots" / OTHER / "model.safetensors").write_bytes(b"older")  # a copy that followed the link
    assert locate(weights()).path == repository / "snapshots" / OTHER / "model.safetensors"


# --- the hub --------------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_once_and_then_our_cache(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    told: list[tuple[str, int, int]] = []
    found = locate(weights(), progress=lambda *step: told.append(step))
    assert found.path == home.source_folder("resnet18") / "model.safetensors"
    assert found.path.read_bytes() == BYTES
    assert found.origin == f"hub {server.url}/timm/resnet18.tv_in1k"
    assert told[-1] == ("downloading model.safetensors", len(BYTES), len(BYTES))
    assert [command for command, _, _ in server.requests] == ["HEAD", "GET"]
    assert locate(weights()).origin == f"cache {found.path.parent}"
    assert len(server.requests) == 2


def test_what_was_kept_is_hashed_again(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    path = locate(weights()).path
    path.write_bytes(BYTES[:-1] + b"!")
    assert locate(weights()).origin.startswith("hub")
    assert path.read_bytes() == BYTES


def test_bytes_that_are_not_those_the_hub_names_are_not_kept(
    server: _Server, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.content["blob"] = BYTES[:-1] + b"!"
    assert f"expected {SHA256}" in reason(weights(), f"hub {server.url}")
    assert [path for path in (machine / "ours").rglob("*") if path.is_file()] == []
    assert locate(weights(server.url)).origin.startswith("official url")


def test_the_token_goes_to_the_hub_and_not_to_its_storage(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate(weights())
    assert [token for _, _, token in server.requests] == ["Bearer hf_secret", None]


def test_a_hub_that_serves_its_own_files_gets_the_token(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.location, server.content["model.safetensors"] = "", BYTES
    locate(weights())
    assert [token for _, _, token in server.requests] == ["Bearer hf_secret", "Bearer hf_secret"]


def test_a_hub_without_the_file_is_told_with_its_answer(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/a%20mirror")
    server.etag = "not-a-sha256"
    assert "answers, but not as a hub does" in reason(weights(), f"hub {server.url}")
    monkeypatch.setattr(image_sources, "HUB_FILES", ("other.safetensors", "other.bin"))
    assert reason(weights(), f"hub {server.url}") == "the server answered 404"


def test_a_hub_that_sends_on_to_a_local_file_is_refused(
    server: _Server, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    (machine / "secret").write_bytes(BYTES)
    server.location = f"file://{machine}/secret"
    assert "is not an http address" in reason(weights(), f"hub {server.url}")


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_hubs_offline_switch_is_for_the_hub_alone(
    server: _Server, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv(switch, "1")
    assert reason(weights(), f"hub {server.url}") == f"not tried: {switch} is set"
    assert server.requests == []
    assert locate(weights(server.url)).origin.startswith("official url")


# --- the official url -----------------------------------------------------------------------------------------------


def test_the_official_url_is_downloaded_once_and_then_taken_from_our_cache(server: _Server) -> None:
    found = locate(weights(server.url, hub=None))
    assert found.path == home.source_folder("resnet18") / "net-0a1b2c3d.pth"
    assert found.origin == f"official url {server.url}/models/net-0a1b2c3d.pth"
    assert locate(weights(server.url, hub=None)).origin.startswith("cache")
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", BYTES + b"more", None], ids=["portal", "more", "404"])
def test_other_bytes_at_the_official_url_are_told_and_not_kept(
    server: _Server, machine: Path, body: bytes | None
) -> None:
    server.content = {} if body is None else {"net-0a1b2c3d.pth": body}
    words = "404" if body is None else f"found SHA-256 {hashlib.sha256(body).hexdigest()}, expected {SHA256[:8]}"
    assert words in reason(weights(server.url, hub=None), "official")
    assert [path for path in machine.rglob("*") if path.is_file()] == []


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for entry, data in members:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def linked(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def slim(server: _Server, data: bytes) -> ImageWeights:
    server.content["net.tar.gz"] = data
    file = PublishedFile(
        "net.tar.gz", f"{server.url}/net.tar.gz", hashlib.sha256(data).hexdigest(), member="inception_v1.ckpt"
    )
    return replace(images.get("slim-inception-v1"), files=(file,))


@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_one_member_of_an_archive_is_kept_alone(server: _Server, machine: Path, prefix: str) -> None:
    data = archive((tarfile.TarInfo("../../escaped"), b"x"), (tarfile.TarInfo(f"{prefix}inception_v1.ckpt"), BYTES))
    found = locate(slim(server, data))
    assert found.path.read_bytes() == BYTES
    assert sorted(path.name for path in machine.rglob("*") if path.is_file()) == ["SHA256SUMS", "inception_v1.ckpt"]
    assert locate(slim(server, data)).origin.startswith("cache")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive((linked("inception_v1.ckpt", "/etc/hostname"), b"")), "holds no inception_v1.ckpt"),
        (archive((tarfile.TarInfo("/tmp/inception_v1.ckpt"), BYTES)), "holds no inception_v1.ckpt"),
        (archive((tarfile.TarInfo("inception_v1.ckpt"), BYTES))[:-20], "cannot be unpacked"),
        (archive((tarfile.TarInfo("inception_v1.ckpt"), BYTES))[:-8] + bytes(8), "CRC check failed"),
        (gzip.compress(b"not a tar" * 100), "cannot be unpacked"),
        (b"not a gzip", "cannot be unpacked"),
    ],
    ids=["link", "absolute", "cut", "crc", "no-tar", "no-gzip"],
)
def test_a_hostile_or_damaged_archive_leaves_nothing(server: _Server, machine: Path, data: bytes, words: str) -> None:
    assert words in reason(slim(server, data), "official")
    assert [path for path in machine.rglob("*") if path.is_file()] == []


def test_a_member_that_is_too_large_is_not_unpacked(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive((tarfile.TarInfo("inception_v1.ckpt"), bytes(len(BYTES))))
    monkeypatch.setattr(image_sources, "_LARGEST", len(BYTES) - 1)
    assert f"holds more than {len(BYTES) - 1} bytes" in reason(slim(server, data), "official")


# --- nothing can be reached -----------------------------------------------------------------------------------------


def test_refused_everywhere_is_told_at_once_with_all_that_a_person_needs(machine: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        locate(weights())
    assert time.monotonic() - started < 5
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"cannot get the weights resnet18 (net-0a1b2c3d.pth, 0.0 MiB, SHA-256 {SHA256[:8]}...)")
    for line in (
        f"cache {machine / 'ours' / 'sources' / 'resnet18'}",
        f"torch hub {torch_hub(machine)}",
        "models--timm--resnet18.tv_in1k",
        f"hub {CLOSED}/timm/resnet18.tv_in1k",
        f"official url {CLOSED}/models/net-0a1b2c3d.pth",
        "cannot be reached (connection refused)",
        f"Environment: HF_ENDPOINT={CLOSED}",
        f"  curl -LO {CLOSED}/models/net-0a1b2c3d.pth\n",
        "  hf download timm/resnet18.tv_in1k model.safetensors --local-dir .\n",
        "  vidweights inflate resnet18 --weights net-0a1b2c3d.pth\n",
        "  vidweights inflate resnet18 --weights model.safetensors\n",
        "vidweights inflate resnet18 --random-init 0",
    ):
        assert line in message
    assert message.count("(connection refused)") == 2
    assert not (machine / "ours").exists()


def test_servers_that_never_answer_are_given_up_in_time(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    with socket.socket() as black_hole:
        black_hole.bind(("127.0.0.1", 0))
        black_hole.listen()
        url = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        started = time.monotonic()
        found = attempts(weights(url))
    assert time.monotonic() - started < 5
    assert [why for why in found.values() if "no answer in" in why] == list(found.values())[-2:]
    assert not (machine / "ours").exists()


def test_a_name_that_is_not_resolved_and_a_resolver_that_hangs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    def hang(*_: object, **__: object) -> list[object]:
        time.sleep(1)
        return fail()

    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    unresolved = attempts(weights("https://weights.invalid"))
    assert ["name not resolved" in why for why in unresolved.values()][-2:] == [True, True]
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(image_sources, "PATIENCE", 0.6)
    started = time.monotonic()
    hanging = attempts(weights("https://weights.invalid"))
    assert time.monotonic() - started < 0.95
    assert ["no answer in 0.3 s" in why for why in hanging.values()][-2:] == [True, True]


def test_offline_asks_nothing_of_the_network(server: _Server, monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    found = attempts(weights(server.url))
    assert list(found.values())[-2:] == ["not tried: VIDWEIGHTS_OFFLINE is set"] * 2
    assert server.requests == []
    (torch_hub(machine) / "net-old.pth").write_bytes(BYTES)
    assert locate(weights(server.url)).path.name == "net-old.pth"


def test_the_message_names_the_switches_and_keeps_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:password@proxy.invalid:3128")
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    with pytest.raises(UnavailableError) as caught:
        locate(images.get("slim-resnet50"))
    message = str(caught.value)
    assert "Environment: VIDWEIGHTS_OFFLINE=1, HF_ENDPOINT=http://127.0.0.1:9, HF_TOKEN set, HTTPS_PROXY set" in message
    assert "tar -xzf resnet_v1_50_2016_08_28.tar.gz resnet_v1_50.ckpt" in message
    assert "--weights resnet_v1_50.ckpt" in message
    assert "secret" not in message
    assert "password" not in message
