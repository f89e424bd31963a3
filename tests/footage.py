"""Small video files for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Container: (codec, pixel format)
CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("ffv1", "bgr0"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "mov": ("qtrle", "rgb24"),
    "ts": ("libx264", "yuv420p"),
}


def counting(count: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """At most 64 frames that tell their own number: frame i is grey of 4i, which lossy codecs keep apart."""
    return np.broadcast_to((4 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3))


def numbers(frames: Any) -> list[int]:
    """The numbers of counting frames (T, H, W, 3)."""
    return [round(float(np.asarray(frame)[8:-8, 8:-8].mean()) / 4) for frame in frames]


def write(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    rate: int = 25,
    times: Sequence[int] | None = None,
    codec: tuple[str, str] | None = None,
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write frames (T, H, W, 3) into a video file; its name says the container.

    Args:
        path: the file.
        frames: the frames.
        rate: frames per second.
        times: when each frame is shown, in milliseconds; evenly if not given.
        codec: another one than the container's in `CODECS`.
        options: of the container's writer.
        settings: attributes of the codec.
    """
    import av

    name, pixels = codec or CODECS[path.suffix[1:]]
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(name, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for setting, value in {"bit_rate": 4_000_000, **settings}.items():
            setattr(stream.codec_context, setting, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixel in enumerate(frames):
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixel), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
