"""Every sink: what it writes can be read back, is the same twice, and survives a full disk."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest

from videossm.runtime import SinkError
from videossm.runtime.sinks import open_sink
from videossm.runtime.sinks.frames import RawSink

# mean error of 255 over the picture: what the colour conversion and, for mp4, the coding may cost
TOLERANCE = {"mp4": 4.0, "gif": 0.0, "y4m": 1.5, "png": 0.0}
KINDS = sorted(TOLERANCE)


@pytest.fixture
def frames():
    """[24, 48, 64, 3]: a green square that moves over dark red."""
    pixels = np.zeros((24, 48, 64, 3), np.uint8)
    pixels[..., 0] = 40
    for index, picture in enumerate(pixels):
        picture[10:30, 2 * index : 2 * index + 16] = (40, 180, 60)
    return pixels


@pytest.fixture
def noisy():
    """[40, 64, 64, 3]: pictures that no encoder makes small."""
    return np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)


def written(path, frames, chunk=3, fps=8.0):
    with open_sink(str(path), frames.shape[2], frames.shape[1], fps) as sink:
        for start in range(0, len(frames), chunk):
            sink.write(frames[start : start + chunk])
    return sink.files


def read(files):
    """Frames of all files, as far as they decode without an error."""
    pictures = []
    for file in files:
        with av.open(file) as container:
            pictures += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_back(tmp_path, frames, kind):
    back = read(written(tmp_path / f"out.{kind}", frames))
    assert back.shape == frames.shape
    error = np.abs(back.astype(float) - frames).mean(axis=(1, 2, 3)).max()
    assert error <= TOLERANCE[kind], f"mean error {error} of 255 in the worst frame"


@pytest.mark.parametrize("kind", KINDS)
def test_same_frames_same_bytes(tmp_path, frames, kind):
    """However they are cut into chunks."""
    one, other = (written(tmp_path / f"{chunk}.{kind}", frames, chunk) for chunk in (3, 8))
    assert [Path(file).read_bytes() for file in one] == [Path(file).read_bytes() for file in other]


@pytest.mark.parametrize(
    ("kind", "codec", "pixels", "fps"), [("mp4", "h264", "yuv420p", 12), ("gif", "gif", "bgra", 12.5)]
)
def test_video_streams(tmp_path, frames, kind, codec, pixels, fps):
    """gif counts in hundredths of a second."""
    (file,) = written(tmp_path / f"out.{kind}", frames, fps=fps)
    with av.open(file) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == (codec, pixels, fps)
        assert (stream.width, stream.height) == (64, 48)


def test_y4m_header(tmp_path, frames):
    (file,) = written(tmp_path / "out.y4m", frames, fps=24000 / 1001)
    content = Path(file).read_bytes()
    assert content.startswith(b"YUV4MPEG2 W64 H48 F24000:1001 Ip A1:1 C444\nFRAME\n")
    assert len(content) == content.index(b"\n") + 1 + 24 * (6 + 3 * 48 * 64)


def test_png_numbers_follow_the_stream(tmp_path, frames):
    sink = open_sink(str(tmp_path / "out.png"), 64, 48, 8.0, first_frame=99_998)
    sink.write(frames[:3])
    assert [os.path.basename(file) for file in sink.files] == ["out-99998.png", "out-99999.png", "out-100000.png"]


def test_raw_frames(frames):
    stream = io.BytesIO()
    sink = RawSink(stream, 64, 48)
    sink.write(frames[:3])
    sink.write(frames[3:5, :, ::-1])  # not contiguous
    sink.close()
    assert stream.getvalue() == frames[:3].tobytes() + frames[3:5, :, ::-1].tobytes()


def test_extension_in_capitals(tmp_path, frames):
    assert len(read(written(tmp_path / "out.MP4", frames))) == 24


@pytest.mark.parametrize(("kind", "missing"), [("mp4", 1), ("y4m", 0)])
def test_file_is_playable_before_it_is_closed(tmp_path, frames, kind, missing):
    """As after a kill: all but the last frame is there."""
    with open_sink(str(tmp_path / f"out.{kind}"), 64, 48, 8.0) as sink:
        for count, start in enumerate(range(0, 24, 3), 1):
            sink.write(frames[start : start + 3])
            assert len(read([str(tmp_path / f"out.{kind}")])) >= 3 * count - missing


@pytest.mark.parametrize("kind", ["mp4", "gif", "y4m"])
def test_the_old_file_stays_until_the_first_frame_comes(tmp_path, frames, kind):
    path = tmp_path / f"out.{kind}"
    old = Path(written(path, frames)[0]).read_bytes()
    with open_sink(str(path), 64, 48, 8.0) as sink:
        assert path.read_bytes() == old
    assert path.read_bytes() == old and sink.files == [], "nothing was written"
    written(path, frames[:3])
    assert len(read([str(path)])) == 3, "nothing of the old file is left"


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_no_file(tmp_path, kind):
    with open_sink(str(tmp_path / f"out.{kind}"), 64, 48, 8.0) as sink:
        pass
    assert not list(tmp_path.iterdir()) and sink.files == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame(tmp_path, frames, kind):
    assert len(read(written(tmp_path / f"out.{kind}", frames[:1]))) == 1


@pytest.mark.parametrize("fps", [0.01, 29.97, 1000.0])
@pytest.mark.parametrize("kind", ["mp4", "gif", "y4m"])
def test_frame_rates_of_a_plan(tmp_path, frames, kind, fps):
    fps = min(fps, 100.0) if kind == "gif" else fps
    assert len(read(written(tmp_path / f"out.{kind}", frames, fps=fps))) == 24


def test_frame_rate_beyond_gif(tmp_path):
    with pytest.raises(SinkError, match=r"^output: got gif for 120 frames/s, expected at most 100; write"):
        open_sink(str(tmp_path / "out.gif"), 64, 48, 120.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_keeps_what_was_written(tmp_path, noisy, kind, full_disk):
    limit = 8_000 if kind == "png" else 100_000  # of one file
    sink = open_sink(str(tmp_path / f"out.{kind}"), 64, 64, 8.0)
    if kind == "png":
        sink.write(np.zeros_like(noisy[:5]))
    with (
        full_disk(limit),
        pytest.raises(SinkError, match=r"^output: cannot write .*\(File too large\); choose a place"),
    ):
        sink.write(noisy)
    sink.close()
    assert len(sink.files) == len(list(tmp_path.iterdir())), "no half picture is left"
    back = read(sink.files)
    assert 5 <= len(back) < 40, "some frames, and no error when they are read"


@pytest.mark.parametrize("kind", ["mp4", "gif", "y4m"])
def test_full_disk_from_the_start(tmp_path, frames, kind, full_disk):
    path = tmp_path / f"out.{kind}"
    with full_disk(0), pytest.raises(SinkError, match=r"\(File too large\)"):
        written(path, frames)
    assert not path.exists()


def test_full_disk_behind_stdout(frames):
    message = r"cannot write stdout \(No space left on device\)"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(SinkError, match=message):
        RawSink(full, 64, 48).write(frames)


@pytest.mark.parametrize("kind", ["mp4", "gif", "y4m"])
def test_full_disk_when_the_file_is_closed(tmp_path, noisy, kind, full_disk):
    """The last fragment is written then; what was whole before stays."""
    path = tmp_path / f"out.{kind}"
    sink = open_sink(str(path), 64, 64, 8.0)
    sink.write(noisy[:20])
    with full_disk(os.path.getsize(path) + 100):
        try:
            sink.close()
        except SinkError as error:
            assert "File too large" in str(error)
    assert len(read([str(path)])) >= 16


@pytest.mark.parametrize("kind", KINDS)
def test_folder_that_does_not_exist(tmp_path, kind):
    with pytest.raises(SinkError, match=r"none/out\..*, whose folder does not exist, expected one"):
        open_sink(str(tmp_path / "none" / f"out.{kind}"), 64, 48, 8.0)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_that_nobody_can_write(kind):
    """/proc refuses even root. It is told before a frame is made."""
    with pytest.raises(SinkError, match=r"^output: cannot write /proc/out.*\("):
        open_sink(f"/proc/out.{kind}", 64, 48, 8.0)


@pytest.mark.parametrize("output", ["out.avi", "out", "out.mp4/", ""])
def test_unknown_extension(tmp_path, output):
    with pytest.raises(SinkError, match=r"^output: got .*, expected "):
        open_sink(f"{tmp_path}/{output}" if output else "", 64, 48, 8.0)


def test_folder_of_that_name(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(SinkError, match="which is a folder"):
        open_sink(str(tmp_path / "out.mp4"), 64, 48, 8.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(3, 48, 63, 3), (3, 64, 48, 3), (48, 64, 3), (3, 48, 64, 4), (1, 3, 48, 64, 3)], ids=str
)
def test_frames_of_another_size(tmp_path, kind, shape):
    message = r"^frames: got uint8 \[.*\], expected uint8 \[T, 48, 64, 3\]; open"
    with open_sink(tmp_path / f"out.{kind}", 64, 48, 8.0) as sink, pytest.raises(SinkError, match=message):
        sink.write(np.zeros(shape, np.uint8))
    assert sink.files == [] and not list(tmp_path.iterdir())


def test_frames_of_another_dtype():
    with pytest.raises(SinkError, match=r"^frames: got float32 \[1, 48, 64, 3\], expected uint8"):
        RawSink(io.BytesIO(), 64, 48).write(np.zeros((1, 48, 64, 3), np.float32))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_rate(tmp_path, kind, fps):
    with pytest.raises(SinkError, match=r"^output: got .* frames/s, expected more than 0"):
        open_sink(tmp_path / f"out.{kind}", 64, 48, fps)


@pytest.mark.parametrize("kind", KINDS)
def test_no_size(tmp_path, kind):
    with pytest.raises(SinkError, match=r"^output: got frames of 0x48, expected sides of 1 or more"):
        open_sink(tmp_path / f"out.{kind}", 0, 48, 8.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_in_place_of_a_text(tmp_path, frames, kind):
    with open_sink(tmp_path / f"out.{kind}", 64, 48, 8.0) as sink:
        sink.write(frames)
    assert len(read(sink.files)) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_two_sinks_of_one_file(tmp_path, frames, kind):
    """The second one is refused, for pictures when it is about to write, and the first one's file is whole."""
    path = tmp_path / f"out.{kind}"
    with open_sink(path, 64, 48, 8.0) as first:
        first.write(frames[:3])
        with pytest.raises(SinkError, match="which another run is writing"), open_sink(path, 64, 48, 8.0) as second:
            second.write(frames[3:6])
        first.write(frames[3:])
    assert len(read(first.files)) == 24
    assert len(read(written(path, frames[:1]))) == 1, "afterwards it may be written again"


@pytest.mark.parametrize("kind", KINDS)
def test_links_are_not_written_through(tmp_path, frames, kind):
    (tmp_path / "thesis").write_text("years of work")
    name = "out-00000.png" if kind == "png" else f"out.{kind}"
    (tmp_path / name).symlink_to(tmp_path / "thesis")
    with pytest.raises(SinkError, match="which is a link, expected a regular file or a new name"):
        written(tmp_path / f"out.{kind}", frames)
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_odd_sides_are_no_mp4(tmp_path):
    with pytest.raises(SinkError, match="got mp4 for 63x48, expected even sides"):
        open_sink(str(tmp_path / "out.mp4"), 63, 48, 8.0)
    assert not (tmp_path / "out.mp4").exists()
