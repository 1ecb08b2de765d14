"""Reading clips. A frame's brightness is its number, so what was decoded shows which frames were taken."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmprune import VlmpruneError
from vlmprune.inputs.video import Clip, ClipLimits, clips, evenly_spaced, is_video_path, read_clip

SIZE = (64, 48)


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Grey of brightness 8 * number, its left upper corner white."""
    image = Image.new("RGB", size, (8 * number,) * 3)
    image.paste((255, 255, 255), (0, 0, size[0] // 4, size[1] // 4))
    return image


def numbers(clip: Clip) -> list[int]:
    return [round(float(np.asarray(frame)[-8:, -8:].mean()) / 8) for frame in clip.frames]


def encode(
    path: Path,
    count: int,
    *,
    codec: str = "mpeg4",
    at: list[int] | None = None,
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    **options: str,
) -> Path:
    """A video of `count` pictures at 10 a second, or `at` these milliseconds."""
    av = pytest.importorskip("av")
    base = Fraction(1, 1000) if at else Fraction(1, 10)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_image(picture(number, size))
            frame.pts, frame.time_base = (at[number] if at else number), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


# -- which frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count"), [(1, 1), (2, 1), (7, 3), (30, 8), (30, 29), (30, 30), (30, 99), (11, 2)])
def test_evenly_spaced(total: int, count: int) -> None:
    """Against the definition, one moment after the other."""
    wanted = set()
    for k in range(min(count, total)):
        moment = (total - 1) / 2 if count == 1 else k * (total - 1) / (min(count, total) - 1)
        wanted.add(min(range(total), key=lambda i: (round(abs(i - moment), 9), i)))
    assert evenly_spaced(range(total), count) == sorted(wanted)


def test_uneven_times() -> None:
    assert evenly_spaced([0, 0.1, 0.15, 1, 5, 5.1], 3) == [0, 3, 5]  # 2.55 s is nearer to 1 s than to 5 s
    assert evenly_spaced([0, 0.1, 0.2, 0.3, 10], 4) == [0, 3, 4]  # the moments 3.3 s and 6.7 s fall to two frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {}),
        ("a.mov", "libx264", {"bf": "3", "g": "7"}),
        ("a.mkv", "libx264", {"g": "250"}),
        ("a.webm", "libvpx-vp9", {"g": "5"}),
        ("a.avi", "mpeg4", {}),
        ("a.ts", "mpeg2video", {}),
    ],
)
def test_frames_of_a_file(name: str, codec: str, options: dict[str, str], tmp_path: Path) -> None:
    if codec == "mpeg2video":
        pytest.importorskip("av")
        path = encode(tmp_path / "a.mkv", 30, codec=codec).rename(tmp_path / name)  # by content, not by name
    else:
        path = encode(tmp_path / name, 30, codec=codec, **options)
    clip = read_clip(path, frames=6)
    assert numbers(clip) == clip.indices == [0, 6, 12, 17, 23, 29]
    assert clip.seconds == pytest.approx([0, 0.6, 1.2, 1.7, 2.3, 2.9], abs=1e-3)
    assert (clip.fps, clip.duration, clip.total) == pytest.approx((10, 3, 30), abs=1e-2)
    whole = read_clip(path)
    assert numbers(whole) == list(range(30)) == whole.indices
    assert numbers(read_clip(path, fps=2)) == [0, 6, 12, 17, 23, 29]
    assert numbers(read_clip(path, frames=1)) == [14]


def test_a_bare_stream_says_no_times(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.h264", 12, codec="libx264", bf="2")
    with pytest.warns(UserWarning, match="does not say when its frames were, so 2 a second are assumed"):
        clip = read_clip(path, frames=4)
    assert numbers(clip) == [0, 4, 7, 11]
    assert clip.seconds is None and is_video_path(path)
    assert clip.metadata == {
        "fps": 2.0, "total_num_frames": 12, "frames_indices": [0, 4, 7, 11], "duration": 6.0, "width": 64, "height": 48,
    }  # fmt: skip


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", 30)
    assert numbers(read_clip(path, between=(1, 1.2))) == [10, 11, 12]
    assert numbers(read_clip(path, between=(1, float("inf")), fps=1e6)) == list(range(10, 30))
    assert numbers(read_clip(path, between=(-9, -5))) == [0]  # the nearest one
    assert numbers(read_clip(path, between=(7, 9), fps=2)) == [29]


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    """Taken by time, and told to processors so that index / fps is the frame's second."""
    at = [0, 100, 150, 1000, 2500, 2600, 5000, 5100]
    clip = read_clip(encode(tmp_path / "a.mkv", 8, codec="libx264", at=at), frames=4)
    assert numbers(clip) == [0, 3, 5, 7]  # 1.7 and 3.4 s in between
    assert clip.seconds == pytest.approx([0, 1, 2.6, 5.1], abs=2e-3)
    told = clip.metadata
    assert [index / told["fps"] for index in told["frames_indices"]] == pytest.approx(clip.seconds, abs=2e-3)
    assert told["total_num_frames"] / told["fps"] == pytest.approx(told["duration"], abs=2e-3)
    assert told["duration"] == pytest.approx(5.1 + 5.1 / 7, abs=1e-2)


@pytest.mark.parametrize(("rotation", "corner"), [(90, "left lower"), (-90, "right upper"), (180, "right lower")])
def test_a_phone_held_upright(rotation: int, corner: str, tmp_path: Path) -> None:
    """The display matrix turns counter-clockwise; the white corner shows where to."""
    (frame,) = read_clip(encode(tmp_path / "a.mp4", 1, rotation=rotation)).frames
    assert frame.size == (SIZE if rotation == 180 else SIZE[::-1])
    x = 2 if "left" in corner else frame.width - 3
    y = 2 if "upper" in corner else frame.height - 3
    assert frame.getpixel((x, y))[0] > 200


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_need_no_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    first, *rest = [picture(number) for number in range(10)]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=200, lossless=True)
    clip = read_clip(tmp_path / name, frames=4)
    assert numbers(clip) == clip.indices == [0, 3, 6, 9]
    assert clip.seconds == pytest.approx([0, 0.6, 1.2, 1.8])
    assert (clip.fps, clip.duration, clip.total) == pytest.approx((5, 2, 10))


def test_an_animation_of_uneven_delays(tmp_path: Path) -> None:
    first, *rest = [picture(number) for number in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[100, 1000, 100, 0])
    clip = read_clip(tmp_path / "a.gif", frames=3)
    assert clip.seconds == pytest.approx([0, 0.1, 1.2])
    assert clip.duration == pytest.approx(1.3)  # no delay is shown for 0.1 s


def test_one_frame(tmp_path: Path) -> None:
    picture(3).save(tmp_path / "a.png")
    for clip in (
        read_clip(tmp_path / "a.png"),
        read_clip(encode(tmp_path / "a.mp4", 1)),
        read_clip([picture(3)], fps=1),
    ):
        assert len(clip.frames) == clip.total == 1
        assert clip.seconds == [0.0]


# -- frames that are there already ------------------------------------------------------------------------------------


def test_a_list_of_frames(tmp_path: Path) -> None:
    frames = [picture(number) for number in range(6)]
    frames[2].save(tmp_path / "2.png")
    clip = read_clip([*frames[:2], str(tmp_path / "2.png"), np.asarray(frames[3]), *frames[4:]], fps=4)
    assert numbers(clip) == list(range(6))
    assert clip.seconds == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert numbers(read_clip(frames, fps=4, frames=3)) == [0, 2, 5]
    assert read_clip(frames, fps=4, frames=3).metadata["frames_indices"] == [0, 2, 5]
    assert numbers(clip.thinned(2)) == clip.thinned(2).indices == [0, 5]
    with pytest.warns(UserWarning, match="so 2 a second are assumed"):
        assert read_clip(frames).metadata["fps"] == 2


def test_only_the_frames_taken_of_an_array_are_converted() -> None:
    """An array may be a file that is mapped into memory, or, as here, no memory at all: 600 GB of zeros."""
    endless = np.broadcast_to(np.zeros((1, 1, 1, 3), "u1"), (2000, 10_000, 10_000, 3))
    refused("ask for fewer frames or make them smaller", endless, fps=1, frames=100)
    assert len(read_clip(endless[:, :4, :4], fps=1, frames=3).frames) == 3
    refused("2,000 frames of 'the video' are more than 1,024", endless, fps=1)


def test_a_tensor_of_bf16() -> None:
    """NumPy has no such numbers."""
    clip = read_clip(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16), fps=1)
    assert [frame.getpixel((0, 0)) for frame in clip.frames] == [(255, 255, 255)] * 2


@pytest.mark.parametrize("form", ["bytes", "floats", "channels"])
def test_an_array_of_frames(form: str) -> None:
    array = np.stack([np.asarray(picture(number)) for number in range(3)])
    given: Any = {
        "bytes": array,
        "floats": array / np.float32(255),
        "channels": torch.from_numpy(array.copy()).permute(0, 3, 1, 2),
    }[form]
    clip = read_clip(given, fps=1)
    assert all(np.array_equal(np.asarray(frame), array[i]) for i, frame in enumerate(clip.frames))


def test_several_videos() -> None:
    one, two = [picture(1)] * 2, [picture(2)] * 3
    assert [len(clip.frames) for clip in clips([one, two], fps=1)] == [2, 3]
    assert [len(clip.frames) for clip in clips(one, fps=1)] == [2]
    assert [len(clip.frames) for clip in clips([np.zeros((4, 8, 8, 3), "u1")] * 2, fps=1)] == [4, 4]


# -- what cannot be read ----------------------------------------------------------------------------------------------


def refused(said: str, *given: Any, **options: Any) -> None:
    with pytest.raises(VlmpruneError) as caught:
        read_clip(*given, **options)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0, text


def test_files_that_are_no_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name, content, said in [
        ("text.mp4", b"hello " * 500, "is no video that can be read here"),
        ("empty.mp4", b"", "is empty"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n", "is no video that can be read here"),
        ("parts.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "is no video that can be read here"),
        ("text.gif", b"hello " * 500, "is no video that can be read here"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(said, tmp_path / name)
    refused("There is no file", tmp_path / "none.mp4")
    refused("is not a file", tmp_path)
    refused("cannot be opened", "a\0b.mp4")
    with pytest.raises(VlmpruneError, match=r"'https://example\.org/a\.mp4' is a web address; download the video"):
        read_clip("https://example.org/a.mp4")


def test_sound_alone(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    refused("has no video stream", tmp_path / "a.mp4")


def test_damaged_files(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", 30, movflags="+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VlmpruneError, match=r"damaged|no video"):
        read_clip(tmp_path / "cut.mp4")
    later = encode(tmp_path / "later.mp4", 30).read_bytes()  # its index stands at the end
    (tmp_path / "cut.mp4").write_bytes(later[: len(later) // 2])
    refused("has no index: it is damaged or was not copied whole", tmp_path / "cut.mp4")
    matroska = bytearray(encode(tmp_path / "whole.mkv", 90, codec="libx264", g="15").read_bytes())
    (tmp_path / "cut.mkv").write_bytes(matroska[: len(matroska) // 2])
    refused("of its 9 s; it is damaged or was not copied whole", tmp_path / "cut.mkv")
    for at in range(1500, len(matroska) - 1500, 37):
        matroska[at] ^= 0x5A
    (tmp_path / "noise.mkv").write_bytes(matroska)
    refused("damaged", tmp_path / "noise.mkv")
    first, *rest = [picture(number, (200, 200)) for number in range(10)]
    first.save(tmp_path / "whole.gif", save_all=True, append_images=rest)
    animated = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.webp").write_bytes(animated[:50])
    refused("cannot be read as a video", tmp_path / "cut.webp")


def test_limits_hold_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = encode(tmp_path / "hour.mp4", 2, size=(3840, 2160), at=[0, 3_600_000])
    short = encode(tmp_path / "short.mp4", 30)
    first, *rest = [picture(number) for number in range(10)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=500)
    for module in ("vlmprune.inputs.video_file.PyAVVideo", "vlmprune.inputs.video_file.PillowVideo"):
        monkeypatch.setattr(f"{module}.decode", lambda *given: pytest.fail("decoded"))
    refused("of 3840 x 2160 pixels, more than is decoded here", hour)
    refused("have 3840 x 2160 pixels, of which at most 1,000,000", hour, limits=ClipLimits(pixels=1_000_000))
    refused("takes 3,600 s, more than 60", hour, limits=ClipLimits(seconds=60))
    refused("bytes, of which at most 500 are read", short, limits=ClipLimits(bytes=500))
    refused("has more than 20 frames", short, limits=ClipLimits(packets=20))
    refused("30 frames of", short, frames=40, limits=ClipLimits(frames=20))
    refused("ask for fewer frames or make them smaller", short, limits=ClipLimits(held_pixels=64 * 48 * 29))
    refused("takes 5 s, more than 4", tmp_path / "a.gif", limits=ClipLimits(seconds=4))
    refused("more than is decoded here", tmp_path / "a.gif", limits=ClipLimits(pixel_seconds=15_000))
    refused("2 frames of 'the video'", [picture(0)] * 2, fps=1, limits=ClipLimits(frames=1))


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    refused("needs PyAV; install it with pip install 'vlmprune[video]'", tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([], {}, "has no frames"),
        ([picture(1), picture(1, (32, 48))], {"fps": 1}, "have 64 x 48 and 32 x 48 pixels"),
        ([picture(1), "hello"], {"fps": 1}, "there is no file 'hello'"),
        ([picture(1), 3], {"fps": 1}, "type 'int' is no frame"),
        (7, {}, "type 'int' is no video"),
        (b"abc", {}, "type 'bytes' is no video"),
        (np.zeros((4, 8, 8), "u1"), {"fps": 1}, "of shape (4, 8, 8) has no frames in RGB"),
        (np.zeros((4, 0, 8, 3), "u1"), {"fps": 1}, "has no frames in RGB"),
        (np.full((2, 8, 8, 3), 7.0), {"fps": 1}, "unless all values lie in 0..1"),
        (np.zeros((2, 8, 8, 3), "i8"), {"fps": 1}, "A video of int64 is not read"),
        ([picture(1)], {"frames": 0}, "frames=0 is no number of frames"),
        ([picture(1)], {"frames": True}, "frames=True is no number of frames"),
        ([picture(1)], {"fps": -1.0}, "fps=-1.0 is no number of frames a second"),
        ([picture(1)], {"fps": 1e308}, "fps=1e+308 is no number of frames a second"),
        ([picture(1)], {"fps": 1e-320}, "fps=1e-320 is no number of frames a second"),
        ([picture(1)], {"fps": 10**400}, "is no number of frames a second"),
        ([picture(1)], {"fps": 1, "between": (0, 1)}, "between=(0, 1) is about a file"),
        ("a.mp4", {"fps": 1, "frames": 3}, "both say how many frames"),
        ("a.mp4", {"between": (5, 1)}, "between=(5, 1) is no part of a clip"),
        ("a.mp4", {"between": (float("nan"), 1)}, "between=(nan, 1) is no part of a clip"),
        ("a.mp4", {"between": (0,)}, "between=(0,) is no part of a clip"),
        ("a.mp4", {"between": 3}, "between=3 is no part of a clip"),
        ("a.mp4", {"between": ("a", "b")}, "is no part of a clip"),
        ("a.mp4", {"between": (None, 2)}, "between=(None, 2) is no part of a clip"),
    ],
)
def test_frames_that_are_none(given: Any, options: dict[str, Any], said: str) -> None:
    if "no file 'hello'" in said:  # the sentence of `read_image`
        with pytest.raises(VlmpruneError, match=said):
            read_clip(given, **options)
        return
    refused(said, given, **options)
