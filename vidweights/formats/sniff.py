"""What a file really is, by its first and last bytes and never by its name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from vidweights.errors import FormatError
from vidweights.formats import table

HEAD = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
# The first object that torch pickled before 1.6 (torch/serialization.py), and its opcode: LONG1 of ten bytes.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_LONG1_MAGIC = b"\x8a\x0a" + TORCH_MAGIC.to_bytes(10, "little")
# Python 2 wrote pickles as text: a dict, a list or a class begins them.
_OLD_PICKLE = re.compile(rb"\([dl]p\d+\n|[}\]]q.|c[\w.]+\n\w+\n", re.DOTALL)
# A table of TensorFlow begins with the key "" and a message: a BundleHeaderProto, whose first field is an integer, or a
# SavedTensorSlices, whose first field is a message of messages. The first blocks of old tables may be compressed.
_BUNDLE = re.compile(rb"\0\0[\x80-\xff]*[\0-\x7f]\x08")
_V1 = re.compile(rb"\0\0[\x80-\xff]+[\0-\x7f]\x0a[\x80-\xff]+[\0-\x7f]\x0a")

# (first bytes, offset, what it is and what to do now)
_IMPOSTORS = (
    (b"version https://git-lfs", 0, "a pointer that git-lfs left in place of the file. Run: git lfs pull"),
    (b"\x1f\x8b", 0, "compressed with gzip. Unpack it first (gunzip, or tar xzf)."),
    (b"BZh", 0, "compressed with bzip2. Unpack it first (bunzip2, or tar xjf)."),
    (b"\xfd7zXZ\0", 0, "compressed with xz. Unpack it first (unxz, or tar xJf)."),
    (b"\x28\xb5\x2f\xfd", 0, "compressed with zstd. Unpack it first (unzstd)."),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7-Zip archive. Unpack it first."),
    (b"Rar!\x1a\x07", 0, "a RAR archive. Unpack it first."),
    (b"ustar", 257, "a tar archive. Unpack it first; if torch before 0.1.10 wrote it, save it again with torch."),
    (b"\x93NUMPY", 0, "one numpy array (.npy) without a name. Give all of them as an .npz."),
    (b"\x89PNG", 0, "a PNG image, not a checkpoint."),
    (b"\xff\xd8\xff", 0, "a JPEG image, not a checkpoint."),
    (b"GIF8", 0, "a GIF image, not a checkpoint."),
    (b"RIFF", 0, "a RIFF file (AVI, WebP, WAV), not a checkpoint."),
    (b"ftyp", 4, "a video (MP4 or MOV), not a checkpoint."),
    (b"\x1a\x45\xdf\xa3", 0, "a video (Matroska or WebM), not a checkpoint."),
    (b"%PDF", 0, "a PDF document, not a checkpoint."),
    (b"\x7fELF", 0, "a program, not a checkpoint."),
    (b"\x08\x01\x12", 0, "the graph of a TensorFlow SavedModel. Give the weights beside it: variables/variables"),
)  # fmt: skip


def sniff(path: Path) -> str:
    """The format of a checkpoint file: a key of `vidweights.formats.READERS`.

    Raises:
        FormatError: it is something else, is empty, or cannot be read; the message says what it is.
    """
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} is a device, a pipe or a socket; expected a file.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            tail = file.read(8)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}.") from error
    # The length of a header (eight bytes) may begin as any other format does; its last bytes and the brace do not.
    if head[6:9] == b"\0\0{":
        return "safetensors"
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip(path)
    if any(head[at:].startswith(_HDF5) for at in (0, 512, 1024, 2048)):
        return "h5"
    if tail == table.MAGIC:
        return "tf" if _BUNDLE.match(head) else "tf-v1"
    kind = _pickle(head, tail)
    if kind is None:
        raise FormatError(f"{path} is {impostor(head) or _unknown(path, head, size)}")
    return kind


def _pickle(head: bytes, tail: bytes) -> str | None:
    """The format of a file that is a pickle, or begins with one."""
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "torch-legacy" if _LONG1_MAGIC in head[:32] else "pickle"
    if tail[-1:] == b"." and _OLD_PICKLE.match(head):
        return "pickle"
    return None


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile lets a damaged directory fail in many ways
        raise FormatError(f"{path} is a zip archive that was cut or damaged ({error}). Download it again.") from error
    if any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    weights = next((name for name in names if name.endswith((".h5", ".hdf5"))), None)
    if weights and "config.json" in names:
        raise FormatError(f"{path} is a .keras archive. Unzip it and give the weights inside: {weights}")
    some = ", ".join(names[:5]) or "nothing"
    raise FormatError(f"{path} is a zip archive without a checkpoint that is read here: it holds {some}.")


def impostor(head: bytes) -> str | None:
    """What a file with these first bytes is, and what to do now; None if it is nothing that is often met instead."""
    if not head:
        return "empty. Download it again."
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page: the download went wrong (a login, a quota or a confirmation). Download the file itself."
    return next((what for magic, at, what in _IMPOSTORS if head[at : at + len(magic)] == magic), None)


def _unknown(path: Path, head: bytes, size: int) -> str:
    try:
        start = head[:60].decode("utf-8")
    except UnicodeDecodeError:
        start = ""
    if start and all(char.isprintable() or char in "\t\r\n" for char in start):
        what = "JSON" if start.lstrip()[:1] in ("{", "[") else "text"
        return f"{what}, not a checkpoint. It begins: {start.splitlines()[0] if start.splitlines() else start!r}"
    if path.suffix == ".index":
        return f"not a whole index of a TensorFlow checkpoint ({size:,} bytes, its end is missing). Download it again."
    if _V1.match(head):
        return f"not a whole TensorFlow V1 checkpoint ({size:,} bytes, its end is missing). Download it again."
    return (
        f"no checkpoint that is read here ({size:,} bytes, the first are {head[:8].hex(' ')}). Read are safetensors, "
        "TensorFlow checkpoints, torch files, pickles of arrays, HDF5 and npz."
    )
