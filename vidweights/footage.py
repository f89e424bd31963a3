"""The frames of a whole video, wherever they come from: a file, an array, or a folder of images."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidweights import home
from vidweights.errors import InputError, UsageError
from vidweights.preprocessing import Preprocessing, check_rate
from vidweights.sampling import Indices, Timeline

if TYPE_CHECKING:
    import torch

    Source = str | Path | NDArray[Any] | torch.Tensor
else:
    Source = Any

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CODED = "flow that is stored as 8-bit images is x * 40 / 255 - 20, if it was clamped at 20 pixels"


class Footage(Protocol):
    """All frames of a video, of which some are read.

    Attributes:
        timeline: when each is shown.
        says: what it is, for a person.
    """

    timeline: Timeline
    says: str

    def read(self, wanted: Indices) -> Iterator[Any]:
        """The frames of these indices, which rise: uint8 or floats (H, W, C), array or tensor."""
        ...


class ArrayFootage:
    """The frames of an array or tensor (T, H, W, C)."""

    def __init__(self, frames: Any, fps: float, says: str) -> None:
        if not hasattr(frames, "ndim"):
            raise InputError(f"the video is a {type(frames).__name__}; expected a path, or an array (T, H, W, C)")
        if frames.ndim != 4:
            raise InputError(f"the frames have shape {tuple(frames.shape)}; expected (T, H, W, C), the whole video")
        self.frames, self.says = frames, says
        self.timeline = Timeline.constant(len(frames), fps)

    def read(self, wanted: Indices) -> Iterator[Any]:
        """The frames (H, W, C) of these indices."""
        for index in wanted:
            yield self.frames[int(index)]


class FolderFootage:
    """A folder of images, or of `.npy` files (H, W, C), one a frame, in the order of the numbers in their names."""

    def __init__(self, folder: Path, flow: bool, fps: float) -> None:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        arrays = [path for path in files if path.suffix.lower() == ".npy"]
        images = [path for path in files if path.suffix.lower() in _IMAGES]
        if flow and images and not arrays:
            raise InputError(
                f"{folder} holds {len(images)} images; a flow network takes displacements: .npy files (H, W, 2) of "
                f"floats in pixels, horizontal first, or one (T, H, W, 2). ({_CODED[0].upper()}{_CODED[1:]}.)"
            )
        if arrays and images:
            raise InputError(f"{folder} holds {len(images)} images and {len(arrays)} .npy files; expected one kind")
        self.files = sorted(arrays or images, key=_natural)
        if not self.files:
            kinds = ".npy" if flow else f"{', '.join(_IMAGES)} or .npy"
            raise InputError(f"{folder} holds no frames; expected files that end in {kinds}")
        self.timeline = Timeline.constant(len(self.files), fps)
        self.says = f"{len(self.files)} files"

    def read(self, wanted: Indices) -> Iterator[Any]:
        """The frames (H, W, C) of these indices."""
        for index in wanted:
            file = self.files[int(index)]
            if file.suffix.lower() == ".npy":
                yield load_array(file)
            else:
                from vidweights.video import read_image

                yield read_image(file)


def _natural(path: Path) -> tuple[Any, ...]:
    """A key by which frame9 comes before frame10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name))


def load_array(file: Path) -> NDArray[Any]:
    """The array of an `.npy` file, mapped into memory.

    Raises:
        InputError: it holds none, or one that would have to be unpickled.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read as an .npy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{file} holds several arrays; expected one (.npy)")
    return array


def existing(source: str | Path) -> Path:
    """The path of a video, or of a folder of frames.

    Raises:
        InputError: there is nothing.
    """
    path = home.expanded(source)
    if not path.exists():
        raise InputError(f"{path}: no such video, .npy file or folder of frames")
    return path


def open_footage(
    source: Source, preprocessing: Preprocessing, fps: float | None = None
) -> AbstractContextManager[Footage]:
    """The frames of a video file, an array, an `.npy` file or a folder.

    Args:
        source: what has them.
        preprocessing: what they are for.
        fps: the rate of frames that come without one; that of the preprocessing if not given.

    Raises:
        UsageError: `fps` was given for a video file, which has its own, or is no rate.
        InputError: there is no such file, or it holds no frames.
        FormatError: the video file is damaged, or is none.
        UnavailableError: PyAV, which decodes video, is not installed.
    """
    flow = preprocessing.channels == "flow"
    rate = check_rate(fps) if fps is not None else 1.0 if preprocessing.fps == "native" else preprocessing.fps
    if not isinstance(source, str | Path):
        return nullcontext(ArrayFootage(source, rate, "frames"))
    path = existing(source)
    if path.is_dir():
        return nullcontext(FolderFootage(path, flow, rate))
    if path.suffix.lower() == ".npy":
        return nullcontext(ArrayFootage(load_array(path), rate, "an .npy file"))
    if flow:
        raise InputError(
            f"{path}: a flow network takes displacements that were computed already: an .npy file (T, H, W, 2) of "
            f"floats in pixels, horizontal first, or a folder of (H, W, 2). ({_CODED[0].upper()}{_CODED[1:]}.)"
        )
    if fps is not None:
        raise UsageError(f"fps is for frames that come without a rate; {path} has its own timestamps")
    from vidweights.video import VideoFile

    return VideoFile(path)
