"""Video files, folders of frames, and what is no video."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import footage
import numpy as np
import pytest

from vidweights.clips import ClipTransform, Preprocessing
from vidweights.errors import FormatError, InputError, UnavailableError, UsageError, VidweightsError
from vidweights.footage import open_footage

torch = pytest.importorskip("torch")
av = pytest.importorskip("av")

from vidweights.video import VideoFile  # noqa: E402

SMALL = Preprocessing(short_side=16, crop=16, frames=8, value_range=(0, 255))
FLOW = Preprocessing(channels="flow", short_side=16, crop=16, frames=4)


def read(path: Path, wanted: Any = None) -> list[Any]:
    with VideoFile(path) as video:
        return list(video.read(np.arange(len(video.timeline)) if wanted is None else np.array(wanted)))


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return footage.write(tmp_path_factory.mktemp("video") / "video.mp4", footage.counting(60))


@pytest.mark.parametrize("container", footage.CODECS)
def test_every_frame_comes_once_in_its_order(container: str, tmp_path: Path) -> None:
    path = footage.write(tmp_path / f"video.{container}", footage.counting(40))
    with VideoFile(path) as video:
        assert len(video.timeline) == 40
        assert video.timeline.fps == pytest.approx(25)
        frames = list(video.read(np.arange(40)))
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)
    if container == "gif":  # of few colours
        assert footage.numbers(frames) == sorted(footage.numbers(frames))
    else:
        assert footage.numbers(frames) == list(range(40))


def test_frames_that_are_shown_in_another_order_than_they_are_stored(tmp_path: Path) -> None:
    for name in ("b.mp4", "b.avi", "b.mkv"):
        path = footage.write(tmp_path / name, footage.counting(40), codec=("libx264", "yuv420p"), max_b_frames=3)
        assert footage.numbers(read(path)) == list(range(40))
        assert footage.numbers(read(path, [3, 17, 38])) == [3, 17, 38]


def test_a_gif_keeps_its_pixels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    frames = [image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).quantize(64) for _ in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40, loop=0)
    for ours, theirs in zip(read(tmp_path / "a.gif"), frames, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs.convert("RGB")))


def test_a_variable_frame_rate_is_known_by_its_timestamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1000]
    path = footage.write(tmp_path / "v.mkv", footage.counting(6), times=times)
    with VideoFile(path) as video:
        assert video.timeline.ticks.tolist() == times
    clip = ClipTransform(Preprocessing(short_side=16, crop=16, frames=10, fps=10.0, value_range=(0, 255))).video(path)
    assert (clip[0, 0, :, 8, 8] / 4).round().tolist() == [0, 2, 2, 2, 2, 3, 4, 4, 4, 4]


def test_frames_far_apart_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 60
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")):
        path = footage.write(
            tmp_path / name, footage.counting(count), rate=1, codec=(codec, "yuv420p"), gop_size=12, max_b_frames=2
        )
        wanted = [0, 1, 30, 31, 44, 59]
        assert footage.numbers(read(path, wanted)) == wanted
        with VideoFile(path) as video:
            decoded = 0
            genuine = video._decoded

            def counted(genuine: Any = genuine) -> Any:
                nonlocal decoded
                for pair in genuine():
                    decoded += 1
                    yield pair

            monkeypatch.setattr(video, "_decoded", counted)
            assert footage.numbers(video.read(np.array(wanted))) == wanted
            assert decoded < count


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_stands_upright(degrees: int, tmp_path: Path) -> None:
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    frames[:, :16, :16] = 250  # a bright corner at the top left
    path = footage.write(tmp_path / "r.mp4", frames)
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: the matrix of the track, clockwise
    data[matrix : matrix + 20] = struct.pack(">5i", cos << 16, sin << 16, 0, -sin << 16, cos << 16)
    path.write_bytes(data)
    frame = read(path)[0]
    expected = np.rot90(frames[0], -degrees // 90)
    assert frame.shape == expected.shape
    assert abs(frame.astype(int) - expected).mean() < 4


def test_only_the_wanted_frames_are_held(tmp_path: Path) -> None:
    path = footage.write(tmp_path / "long.mp4", np.broadcast_to(np.uint8(7), (300, 240, 320, 3)))
    tracemalloc.start()
    clip = ClipTransform(SMALL).video(path, clips=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert clip.shape == (10, 3, 8, 16, 16)
    assert peak < 10 * 240 * 320 * 3  # all frames are 300 of these


def test_a_file_and_its_frames_give_the_same_clips(mp4: Path) -> None:
    frames = np.stack(read(mp4))
    expected = ClipTransform(SMALL).video(frames, clips=4)
    assert torch.equal(ClipTransform(SMALL).video(mp4, clips=4), expected)
    assert torch.equal(ClipTransform(SMALL).video(torch.from_numpy(frames), clips=4), expected)
    assert torch.equal(expected[1], ClipTransform(SMALL)(frames[17:25]))
    assert [round(float(clip[0, 0].mean()) / 4) for clip in expected] == [0, 17, 34, 52]


def test_an_array_has_the_rate_that_is_given(tmp_path: Path) -> None:
    frames = footage.counting(60)
    np.save(tmp_path / "frames.npy", frames)
    for source in (frames, tmp_path / "frames.npy"):
        clip = ClipTransform(SMALL).video(source, fps=50)
        assert (clip[0, 0, :, 8, 8] / 4).tolist() == [22, 24, 26, 28, 30, 32, 34, 36]
    assert torch.equal(ClipTransform(SMALL).video(frames), ClipTransform(SMALL)(frames[26:34])[None])


def test_a_video_has_a_rate_of_its_own(mp4: Path) -> None:
    with pytest.raises(UsageError, match="has its own timestamps"):
        ClipTransform(SMALL).video(mp4, fps=25)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".npy"])
def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(suffix: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, frame in enumerate(footage.counting(12)):
        if suffix == ".npy":
            np.save(tmp_path / f"frame{i}.npy", frame)
        else:
            image.fromarray(frame).save(tmp_path / f"frame{i}{suffix}")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = ClipTransform(SMALL).video(tmp_path)
    assert (clip[0, 0, :, 8, 8] / 4).round().tolist() == list(range(2, 10))


def test_flow_comes_as_an_array_or_as_a_folder_of_arrays(tmp_path: Path) -> None:
    field = np.random.default_rng(0).normal(0, 5, (9, 20, 24, 2)).astype(np.float32)
    np.save(tmp_path / "flow.npy", field)
    (tmp_path / "flow").mkdir()
    for i, frame in enumerate(field):
        np.save(tmp_path / "flow" / f"{i}.npy", frame)
    expected = ClipTransform(FLOW)(field[2:6])[None]
    for source in (field, tmp_path / "flow.npy", tmp_path / "flow"):
        assert torch.equal(ClipTransform(FLOW).video(source), expected)


def test_float_frames_may_begin_in_the_dark_but_not_be_scaled() -> None:
    fading = footage.counting(8).astype(np.float32)
    fading[:4] = 0.5
    assert ClipTransform(SMALL).video(fading).shape == (1, 3, 8, 16, 16)
    with pytest.raises(InputError, match=r"of at most 0\.1\d+; .* scaled to \[0, 1\]"):
        ClipTransform(SMALL).video(footage.counting(8) / 255)


def _files(folder: Path, mp4: Path) -> dict[str, Path]:
    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    fast = footage.write(folder / "fast.mp4", noise, options={"movflags": "faststart"}).read_bytes()
    webm = footage.write(folder / "whole.webm", noise).read_bytes()
    avi = footage.write(folder / "whole.avi", noise).read_bytes()
    holed = bytearray(fast)
    holed[len(fast) // 2 : len(fast) // 2 + 3000] = bytes(3000)
    return {
        "empty": file("empty.mp4", b""),
        "page": file("page.mp4", b"<!DOCTYPE html><html><body>Not found</body></html>"),
        "zeros": file("zeros.mp4", bytes(5000)),
        "noise": file("noise.avi", rng.bytes(5000)),
        "text": file("text.mkv", b"hello\n" * 100),
        "playlist": file("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n" + bytes(mp4) + b"\n"),
        "script": file("script.mp4", b"ffconcat version 1.0\nfile video.mp4\n"),
        "no index": file("tail.mp4", mp4.read_bytes()[:-200]),
        "half": file("half.mp4", fast[: len(fast) // 2]),
        "half avi": file("half.avi", avi[: len(avi) // 2]),
        "half webm": file("half.webm", webm[: len(webm) // 2]),
        "hole": file("hole.mp4", bytes(holed)),
    }


_SAYS = {
    "empty": "It is empty",
    "page": "It is a web page",
    "playlist": "cannot be decoded",
    "script": "cannot be decoded",
    "half": "says that it has 60 frames, and holds",
    "half avi": "says that it has 60 frames, and holds",
    "half webm": r"says that it is 2\.4 seconds long, and holds",
    "hole": "cannot be decoded as video: Invalid data",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, mp4: Path) -> dict[str, Path]:
    return _files(tmp_path_factory.mktemp("bad"), mp4)


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "page",
        "zeros",
        "noise",
        "text",
        "playlist",
        "script",
        "no index",
        "half",
        "half avi",
        "half webm",
        "hole",
    ],
)
def test_a_file_that_is_no_whole_video_is_refused(kind: str, bad: dict[str, Path]) -> None:
    with pytest.raises(FormatError, match=_SAYS.get(kind, "damaged|no decoder")) as found:
        ClipTransform(SMALL).video(bad[kind], clips=10)
    assert str(bad[kind]) in str(found.value)


def test_no_mutation_of_a_video_ends_in_another_error(tmp_path: Path, mp4: Path) -> None:
    data = mp4.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            changed[place] = rng.integers(256)
        (tmp_path / "m.mp4").write_bytes(changed)
        try:
            ClipTransform(SMALL).video(tmp_path / "m.mp4")
            outcomes.add("read")
        except VidweightsError as error:
            outcomes.add(type(error).__name__)
    assert {"read", "FormatError"} <= outcomes


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"no video in it\. It has sound only"):
        ClipTransform(SMALL).video(path)


def test_a_frame_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;"
    (tmp_path / "bomb.gif").write_bytes(header + image)
    with pytest.raises(FormatError, match=r"65535x65535; it is not to be trusted|cannot be decoded"):
        ClipTransform(SMALL).video(tmp_path / "bomb.gif", frames=1)


@pytest.mark.parametrize(
    ("source", "preprocessing", "message"),
    [
        ("nothing.mp4", SMALL, "no such video"),
        ("empty", SMALL, r"holds no frames; expected files that end in \.bmp"),
        ("coded", FLOW, r"1 images; a flow network takes displacements.*x \* 40 / 255 - 20"),
        ("mixed", SMALL, "expected one kind"),
        ("video.mp4", FLOW, r"computed already: an \.npy file \(T, H, W, 2\).*x \* 40 / 255 - 20"),
        ("one.npy", SMALL, r"shape \(48, 64, 3\); expected \(T, H, W, C\)"),
        ("text.npy", SMALL, "cannot be read as an .npy file"),
        ("zipped.npy", SMALL, "cannot be read as an .npy file"),
        ("codes.npy", FLOW, r"flow frames are uint8; .* x \* 40 / 255 - 20"),
        ("coded/1.png", SMALL, "cannot be decoded as video"),
    ],
)
def test_what_holds_no_frames_for_the_network_is_refused(
    source: str, preprocessing: Preprocessing, message: str, tmp_path: Path, mp4: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    for folder in ("empty", "coded", "mixed"):
        (tmp_path / folder).mkdir()
    for folder in ("coded", "mixed"):
        image.new("L", (20, 20)).save(tmp_path / folder / "1.png")
    np.save(tmp_path / "mixed" / "2.npy", np.zeros((20, 20, 3), np.uint8))
    np.save(tmp_path / "one.npy", footage.counting(1)[0])
    np.save(tmp_path / "codes.npy", np.zeros((9, 20, 20, 2), np.uint8))
    (tmp_path / "text.npy").write_text("a web page")
    (tmp_path / "zipped.npy").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "video.mp4").write_bytes(mp4.read_bytes())
    with pytest.raises(VidweightsError, match=message):
        ClipTransform(preprocessing).video(tmp_path / source)


def test_what_is_neither_a_path_nor_an_array_is_refused() -> None:
    with pytest.raises(InputError, match="the video is a list; expected a path, or an array"):
        ClipTransform(SMALL).video([1, 2])  # type: ignore[arg-type]


def test_a_damaged_image_in_a_folder_is_named(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(FormatError, match=r"0\.png cannot be decoded"):
        ClipTransform(SMALL).video(tmp_path)


def test_without_pyav_it_is_said_what_to_install(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnavailableError, match=r"pip install 'vidweights\[video\]'"):
        ClipTransform(SMALL).video(mp4)
    assert ClipTransform(SMALL).video(footage.counting(8)).shape == (1, 3, 8, 16, 16)


def test_pyav_is_imported_only_to_decode() -> None:
    code = "import sys, vidweights.clips, vidweights.footage, vidweights.video; print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_file_is_let_go(mp4: Path) -> None:
    opened = Path("/proc/self/fd")
    if not opened.is_dir():
        pytest.skip("this system does not list open files")

    def times() -> int:
        return sum(link.resolve() == mp4.resolve() for link in opened.iterdir())

    for _ in range(3):
        with open_footage(mp4, SMALL) as video:
            list(video.read(np.array([5])))
            assert times() == 1
    assert times() == 0
