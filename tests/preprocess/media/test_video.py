"""Files -> frames: evenly spread, upright, in RGB."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest

from forebay.errors import InvalidRequest
from preprocess.media import video
from preprocess.media.containers import opened
from preprocess.media.decoded import Video
from preprocess.media.decoder import decode
from preprocess.media.formats import FileFormat
from preprocess.media.limits import ALL_FRAMES, MediaLimits
from tests.preprocess.media.files import VIDEOS, animation, ffmpeg_sound_file, reason_of, video_file


def video_of(data: bytes, **limits: float) -> Video:
    decoded = decode(data, "video", MediaLimits(**limits), None)
    assert isinstance(decoded, Video) and decoded.frames.dtype == np.uint8
    return decoded


def refused(data: bytes, **limits: float) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        video_of(data, **limits)
    return raised.value


def greys(video: Video) -> list[int]:
    """The value of each frame's middle."""
    return [int(frame[24, 32].mean()) for frame in video.frames]


@pytest.mark.parametrize(("container", "codec"), VIDEOS)
def test_a_short_video_has_all_its_frames(container: str, codec: str) -> None:
    found = video_of(video_file(container, codec))
    assert found.frames.shape == (10, 48, 64, 3)
    assert found.frames_per_second == pytest.approx(10, rel=0.01)
    assert greys(found) == pytest.approx([20 * index for index in range(10)], abs=6)


def test_of_a_long_video_32_frames_are_taken_evenly() -> None:
    found = video_of(video_file("mp4", "libx264", num_frames=100))
    wanted = np.linspace(0, 99, 32, dtype=int)
    assert wanted[0] == 0 and wanted[-1] == 99
    assert greys(found) == pytest.approx([20 * index % 240 for index in wanted], abs=8)
    assert found.frames_per_second == pytest.approx(3.2, rel=0.01)


@pytest.mark.parametrize("count", [1, 40, 99])
def test_as_many_frames_are_taken_as_the_operator_says(count: int) -> None:
    found = video_of(video_file("mp4", "libx264", num_frames=100), sampled_frames=count)
    assert greys(found) == pytest.approx([20 * index % 240 for index in np.linspace(0, 99, count, dtype=int)], abs=8)


def test_all_frames_are_taken_where_they_are_within_the_limit() -> None:
    file = video_file("mp4", "libx264", num_frames=100)
    assert len(video_of(file, sampled_frames=ALL_FRAMES, video_frames=100).frames) == 100
    error = refused(file, sampled_frames=ALL_FRAMES, video_frames=99)
    assert reason_of(error) == "MEDIA_TOO_LARGE" and error.message == "the video has 100 frames; at most 99 are taken"


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx-vp9")])
def test_frames_that_are_sought_are_those_of_decoding_all(
    container: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = video_file(container, codec, num_frames=300, key_every=10)
    sought = video_of(file)
    decoded = []
    monkeypatch.setattr(video, "_sought", lambda *_: decoded.append("none is found by seeking") or iter([None]))
    assert np.array_equal(video_of(file).frames, sought.frames) and decoded


def test_of_a_long_video_few_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file, count = video_file("mp4", "libx264", num_frames=1_000, key_every=10), 0

    def counted(data: bytes, format: FileFormat) -> av.container.InputContainer:
        container = opened(data, format)
        decode = container.decode

        class Counting:
            def __getattr__(self, name: str):
                return getattr(container, name)

            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                container.close()

            def decode(self, *streams):
                nonlocal count
                for frame in decode(*streams):
                    count += 1
                    yield frame

        return Counting()

    monkeypatch.setattr(video, "opened", counted)
    assert len(video_of(file).frames) == 32
    assert count <= 32 * 11


def test_a_picture_that_moves_can_be_a_video() -> None:
    found = video_of(animation("GIF", [(250, 0, 0), (0, 250, 0), (0, 0, 250)]))
    assert found.frames.shape == (3, 12, 16, 3)
    assert [int(frame[5, 5].argmax()) for frame in found.frames] == [0, 1, 2]


def test_a_video_stands_upright() -> None:
    """The matrix in the header of its track turns it by a quarter (ISO/IEC 14496-12, 8.3.2)."""
    upright = np.zeros((4, 48, 64, 3), np.uint8)
    upright[:, :24] = 255  # the upper half is white
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in upright:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # by 90 degrees clockwise
    data = file.getvalue()
    track = data.index(b"tkhd")
    place = data.index(plain, track)
    found = video_of(data[:place] + turned + data[place + len(turned) :])
    assert found.frames.shape == (4, 64, 48, 3)
    assert found.frames[0, 32, 40].mean() > 200 and found.frames[0, 32, 8].mean() < 50  # white is at the right


@pytest.mark.parametrize(("container", "codec"), VIDEOS)
@pytest.mark.parametrize("sixteenth", range(0, 16, 3))
def test_a_file_that_was_cut_is_refused_or_has_fewer_whole_frames(container: str, codec: str, sixteenth: int) -> None:
    file = video_file(container, codec)
    try:
        found = video_of(file[: len(file) * sixteenth // 16])
    except InvalidRequest as error:
        assert reason_of(error) in ("MEDIA_DECODE", "MEDIA_UNUSABLE")  # which codec it has may be cut off too
    else:
        assert len(found.frames) <= 10


def test_a_video_without_its_index_is_refused() -> None:
    file = video_file("mp4", "libx264")
    assert reason_of(refused(file.replace(b"moov", b"none"))) == "MEDIA_DECODE"


@pytest.mark.parametrize(
    "limits",
    [{"video_seconds": 0.5}, {"image_pixels": 64 * 48 - 1}, {"video_pixels": 10 * 64 * 48 - 1}, {"video_frames": 9}],
    ids=lambda limits: next(iter(limits)),
)
def test_a_video_over_a_limit_is_refused(limits: dict[str, float]) -> None:
    assert reason_of(refused(video_file(), **limits)) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    "file",
    [ffmpeg_sound_file("mp4", "aac"), b"\x1a\x45\xdf\xa3" + b"\0" * 200, b"\0\0\0\x18ftypisom" + b"\xff" * 100],
    ids=["sound", "empty-matroska", "noise"],
)
def test_a_video_that_is_none_is_refused(file: bytes) -> None:
    assert reason_of(refused(file)) == "MEDIA_DECODE"


def test_a_codec_that_is_not_known_is_refused_before_it_runs() -> None:
    error = refused(video_file("matroska", "ffv1"))
    assert reason_of(error) == "MEDIA_UNUSABLE" and "codec" in error.message
