"""Video files: when each frame is shown, and the frames that are wanted, decoded by PyAV.

Only containers that hold their frames themselves are opened (MP4, MOV, Matroska, WebM, AVI, GIF, MPEG, FLV, ASF, Ogg):
playlists and scripts, which name other files or addresses, are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import FormatError, InputError, UnavailableError
from vidweights.sampling import Indices, Timeline

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,flv,asf,ogg"
_IMAGES = "image2,bmp_pipe,jpeg_pipe,png_pipe,ppm_pipe,tiff_pipe,webp_pipe"
_OPTIONS = {"protocol_whitelist": "file"}
# Of one frame; 8K is 33 million. A file of a few bytes can declare one that fills the memory.
_MOST_PIXELS = 1 << 26
# Further than this many seconds ahead, a frame is sought instead of decoding all those before it.
_SEEK = 10


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise UnavailableError("decoding video needs PyAV: pip install 'vidweights[video]'") from error
    av.logging.set_level(None)
    return av


@contextmanager
def _clear(path: Path) -> Iterator[None]:
    """PyAV's errors as ours."""
    av = _av()
    try:
        yield
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise FormatError(f"{path} cannot be decoded as video: {what}. {_looks(path)}") from error


def _looks(path: Path) -> str:
    """What a file that is no video seems to be."""
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError as error:
        return f"It cannot be read ({error.strerror})."
    if not head:
        return "It is empty."
    if head.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in head:
        return "It is a web page: whatever fetched it got an answer in place of the file."
    if head.startswith(b"version https://git-lfs"):
        return "It is a pointer that git-lfs left in place of the file. Run: git lfs pull"
    return "It is damaged, cut short, or no video. (Read are MP4, MOV, MKV, WebM, AVI, GIF, MPEG, FLV, ASF and Ogg.)"


class VideoFile:
    """A video file, open for reading; use it in a `with` statement.

    Attributes:
        path: the file.
        timeline: when each frame is shown.
        says: codec, size and rate, for a person.

    Raises:
        InputError: it has sound only.
        FormatError: it is damaged, cut short, or no video.
        UnavailableError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container: Any = None
        self._open()
        try:
            with _clear(path):
                self.timeline = self._timeline()
        except BaseException:
            self.close()
            raise
        context = self._stream.codec_context
        self.says = f"{context.name} {context.width}x{context.height}, {self.timeline.fps:.4g} frames per second"

    def _open(self) -> None:
        self.close()
        if not self.path.is_file():
            raise InputError(f"{self.path} is no file")
        with _clear(self.path):
            # An absolute path: `concat:a|b.mp4` would be an instruction.
            self._container = _av().open(
                str(self.path.absolute()), options={**_OPTIONS, "format_whitelist": _CONTAINERS}
            )
        self._stream = _video_stream(self._container, self.path)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()

    def _timeline(self) -> Timeline:
        """When each frame is shown, from the packets alone; nothing is decoded."""
        packets = [packet for packet in self._container.demux(self._stream) if packet.size and not packet.is_discard]
        declared = self._stream.frames
        if not packets or len(packets) < declared - _slack(declared):
            raise FormatError(
                f"{self.path} is cut short or damaged: it says that it has {declared} frames, and holds {len(packets)}."
            )
        # AVI stores the order of decoding, and some streams store nothing: then frames are counted as they come.
        times = [packet.dts if self._counts else packet.pts for packet in packets]
        self._counted = self._counts or None in times
        tick = Fraction(self._stream.time_base or 1)
        if None in times:
            timeline = Timeline.constant(len(packets), self._stream.average_rate or Fraction(25))
        else:
            ticks = np.unique(np.array(times, np.int64))
            timeline = Timeline(ticks, _end(ticks, packets), tick)
        self._check_duration(timeline)
        return timeline

    @property
    def _counts(self) -> bool:
        return "avi" in self._container.format.name.split(",")

    def _check_duration(self, timeline: Timeline) -> None:
        """Matroska states how long each of its streams is, when it was finished."""
        said = _seconds(self._stream.metadata.get("DURATION", ""))
        if said is not None and timeline.seconds < 0.95 * said - 0.2:
            raise FormatError(
                f"{self.path} is cut short: it says that it is {said:.1f} seconds long, and holds "
                f"{timeline.seconds:.1f}."
            )

    def read(self, wanted: Indices) -> Iterator[NDArray[np.uint8]]:
        """The frames of these indices, which rise: uint8 (H, W, 3), red first, upright.

        What is on screen at the frame's time is taken, so that a packet that gives no frame of its own (a field, a
        repeated frame) is the one before it.

        Raises:
            FormatError: they cannot be decoded.
        """
        with _clear(self.path):
            yield from self._shown(wanted)

    def _shown(self, wanted: Indices) -> Iterator[NDArray[np.uint8]]:
        ticks = self.timeline.ticks[wanted]
        apart = np.diff(ticks) * float(self.timeline.tick) > _SEEK
        groups = [ticks] if self._counted else np.split(ticks, np.flatnonzero(apart) + 1)
        for group in groups:
            yield from self._on_screen(group)

    def _on_screen(self, ticks: Indices) -> Iterator[NDArray[np.uint8]]:
        """What is shown at each of these ticks, which lie close together."""
        previous: tuple[int, Any] | None = None
        done = 0
        for tick, frame in self._from(int(ticks[0])):
            while done < len(ticks) and tick > ticks[done]:
                yield _pixels(frame if previous is None else previous[1], self.path)
                done += 1
            if done == len(ticks):
                return
            previous = (tick, frame)
        reached = 0 if previous is None else int(np.searchsorted(self.timeline.ticks, previous[0])) + 1
        needed = int(np.searchsorted(self.timeline.ticks, ticks[-1])) + 1
        if previous is None or needed > reached + 2:
            raise FormatError(
                f"{self.path} is cut short or damaged: frame {needed} of {len(self.timeline)} is wanted, and the last "
                f"that can be decoded is {reached}."
            )
        for _ in ticks[done:]:
            yield _pixels(previous[1], self.path)

    def _from(self, tick: int) -> Iterator[tuple[int, Any]]:
        """Decoded frames, each with its tick, from a key frame before `tick` on, or from the start."""
        ahead = (tick - int(self.timeline.ticks[0])) * float(self.timeline.tick)
        if not self._counted and ahead > _SEEK:
            # A second earlier: what is sought is an order of decoding, and a frame may be shown before its key frame.
            self._container.seek(tick - int(1 / self.timeline.tick), stream=self._stream)
            frames = self._decoded()
            first = next(frames, None)
            if first is not None and first[0] <= tick:
                return itertools.chain([first], frames)
        self._open()
        return self._decoded()

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        known, last = self.timeline.ticks, int(self.timeline.ticks[0])
        for number, frame in enumerate(self._container.decode(self._stream)):
            if self._counted:
                last = int(known[min(number, len(known) - 1)])
            elif frame.pts is not None:
                last = int(frame.pts)
            yield last, frame


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures; the cover of an album is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        sound = " It has sound only." if container.streams.audio else ""
        container.close()
        raise InputError(f"{path} has no video in it.{sound}")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        container.close()
        raise FormatError(f"{path}: no decoder is known for its video")
    if context.width * context.height > _MOST_PIXELS:
        container.close()
        raise FormatError(f"{path} says that its frames are {context.width}x{context.height}; it is not to be trusted")
    stream.thread_type = "AUTO"
    context.options = {"max_pixels": str(_MOST_PIXELS)}
    return stream


def _slack(declared: int) -> int:
    """How many packets may lack of those that a header promises: writers miscount by one or two."""
    return 2 + declared // 100


def _end(ticks: Indices, packets: list[Any]) -> int:
    """When the last frame disappears; where the file does not say, it is shown as long as most."""
    last = max(packets, key=lambda packet: packet.pts if packet.pts is not None else packet.dts)
    usual = int(np.median(np.diff(ticks))) if len(ticks) > 1 else 1
    return int(ticks[-1]) + max(last.duration or usual, 1)


def _seconds(text: str) -> float | None:
    """What `00:01:02.5` says."""
    parts = text.split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _pixels(frame: Any, path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), red first, turned upright."""
    if frame.width * frame.height > _MOST_PIXELS:
        raise FormatError(f"{path} has a frame of {frame.width}x{frame.height}; it is not to be trusted")
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    quarters, rest = divmod(frame.rotation, 90)
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters % 4 and not rest else pixels


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file: uint8 (H, W, 3), red first.

    Raises:
        FormatError: it is damaged, or is no image.
        UnavailableError: PyAV is not installed.
    """
    # From a stream: given the name, the library would take img1.png for the first of a sequence.
    options = {**_OPTIONS, "format_whitelist": _IMAGES}
    with _clear(path), path.open("rb") as file, _av().open(file, options=options) as container:
        for frame in container.decode(_video_stream(container, path)):
            return _pixels(frame, path)
    raise FormatError(f"{path} holds no image. {_looks(path)}")
