"""The video files of the floor: the bytes that Triptych writes, with as little around them as can be."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from benchmarks.floor.clip import FPS, TINY_CLIP, Clip
from benchmarks.floor.message import digest
from services.media.encoders import X264

RATE = Fraction(FPS)
PIXELS_FOR_THREADS = 512 * 512  # of a frame: services/media/video.py has the reason


class Videos:
    """A folder of videos, all of one size; each frame has one colour.

    Settings and syncs are those of services/media/video.py and services/media/files.py: a file that has its
    name is whole, and on the disk. There is no claim on it (services/media/claims.py), which saves a file and
    a sync: whoever finds the row of a job that is not completed can look for the file by its name.
    """

    def __init__(self, directory: Path, clip: Clip = TINY_CLIP) -> None:
        self._directory = directory
        self._clip = clip
        self._folder = os.open(directory, os.O_RDONLY)

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.mp4"

    def write(self, name: str, key: bytes) -> Path:
        """The frames' colours depend on ``key`` alone."""
        path = self.path(name)
        part = f"{path}.part"
        encode(part, key, self._clip)
        written = os.open(part, os.O_RDONLY)
        os.fsync(written)
        os.close(written)
        os.replace(part, path)
        os.fsync(self._folder)
        return path

    def close(self) -> None:
        os.close(self._folder)


def encode(path: str, key: bytes, clip: Clip) -> None:
    """The video alone, which the system writes to the disk when it likes."""
    small = clip.width * clip.height < PIXELS_FOR_THREADS
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(X264.codec, rate=RATE, options=dict(X264.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = clip.width, clip.height
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / RATE
        codec = stream.codec_context
        if clip.frames == 1:
            codec.thread_count = 1  # the same bytes, and no threads to start and end
        codec.color_range = ColorRange.MPEG
        codec.colorspace = Colorspace.ITU709
        codec.color_primaries = ColorPrimaries.BT709
        codec.color_trc = ColorTrc.BT709
        reformatter = VideoReformatter()
        for index in range(clip.frames):
            frame = reformatter.reformat(
                VideoFrame.from_ndarray(pixels(key, index, clip), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1 if small else None,  # or it starts some, for a frame of this size
            )
            frame.pts, frame.time_base = index, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def pixels(key: bytes, index: int, clip: Clip) -> npt.NDArray[np.uint8]:
    """A frame of one colour, as those of the emulated decoder (services/model/emulated.py)."""
    colour = digest(key + bytes([index % 256]))[:3]
    # For 480p a fiftieth of the time that np.full takes.
    return np.frombuffer(colour * (clip.height * clip.width), np.uint8).reshape(clip.height, clip.width, 3)
