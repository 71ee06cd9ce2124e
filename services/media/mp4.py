"""Writes frames into an MP4 file while they are still being computed."""

from __future__ import annotations

import os
import queue
import threading
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

QUEUE_CHUNKS = 4  # not yet encoded; then write() waits


class MediaError(Exception):
    """A media file could not be written; names the file."""


@dataclass(frozen=True)
class MediaFacts:
    """What lies on the disk."""

    bytes: int
    width: int
    height: int
    num_frames: int
    fps: float


class Mp4Writer:
    """H.264 (4:2:0, BT.709) in MP4, its index in front so that players need not wait for the end.

    Encodes on a thread of its own into ``<path>.part``, which ``finish`` renames: the file is whole or not
    there. Equal frames give equal bytes on one machine. Used by one thread at a time; as a context manager it
    aborts unless finished.
    """

    def __init__(
        self, path: Path, width: int, height: int, fps: float, *, crf: int = 18, preset: str = "veryfast"
    ) -> None:
        """Frames are ``width`` x ``height``; an odd size is made even by repeating the last column or row.

        ``crf`` is x264's quality (0 lossless, 51 worst), ``preset`` its speed. Raises MediaError when the
        file cannot be made, ValueError when ``fps`` is not positive.
        """
        rate = Fraction(fps).limit_denominator(1001)
        if rate <= 0:
            raise ValueError(f"fps is {fps}, expected more than 0")
        self._path = path
        self._part = part_path(path)
        self._shape = (height, width, 3)
        self._padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
        self._rate = rate
        self._num_frames = 0
        self._error: Exception | None = None
        self._closed = False
        self._aborted = threading.Event()
        self._reformatter = VideoReformatter()  # a frame's own would be set up anew for each
        self._chunks: queue.Queue[np.ndarray | None] = queue.Queue(QUEUE_CHUNKS)
        # "file:" lest a colon in the path be taken for a protocol.
        self._container = av.open(f"file:{self._part}", "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(
            "libx264", rate=rate, options={"crf": str(crf), "preset": preset}
        )
        self._stream.width = width + width % 2
        self._stream.height = height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = 1 / rate
        codec = self._stream.codec_context
        codec.color_range = ColorRange.MPEG
        codec.colorspace = Colorspace.ITU709
        codec.color_primaries = ColorPrimaries.BT709
        codec.color_trc = ColorTrc.BT709
        try:
            # libav opens it with the first frame: too late to refuse. This descriptor also hears of what
            # goes wrong when the system writes back later, which one opened afterwards may not.
            self._file = self._part.open("wb")
        except OSError as error:
            raise MediaError(f"{path}: {error}") from error
        self._thread = threading.Thread(target=self._encode_chunks, name="mp4", daemon=True)
        self._thread.start()

    def write(self, frames: np.ndarray) -> None:
        """Appends uint8 (n, height, width, 3), not to be changed afterwards.

        Waits while encoding is behind; MediaError if it failed.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            height, width, _ = self._shape
            raise ValueError(
                f"frames are {frames.dtype} {frames.shape}, expected uint8 (n, {height}, {width}, 3)"
            )
        self._raise_error()
        self._num_frames += len(frames)
        self._chunks.put(frames)

    def finish(self) -> MediaFacts:
        """Waits until the file is complete and on the disk. MediaError if not; then nothing is left of it."""
        self._join()
        written = self._part
        try:
            if self._num_frames == 0:
                raise MediaError(f"{self._path}: no frames were written")
            self._raise_error()
            try:
                with self._file:
                    os.fsync(self._file.fileno())
                    size = os.fstat(self._file.fileno()).st_size
                os.replace(self._part, self._path)
                written = self._path
                _sync_folder(self._path.parent)
            except OSError as error:
                raise MediaError(f"{self._path}: {error}") from error
        except MediaError:
            self._remove(written)
            raise
        return MediaFacts(size, self._stream.width, self._stream.height, self._num_frames, float(self._rate))

    def abort(self) -> None:
        """Gives up: stops encoding and removes the partial file. Does nothing after ``finish``."""
        if not self._closed:
            self._aborted.set()
            self._join()
            self._remove(self._part)

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _join(self) -> None:
        self._closed = True
        self._chunks.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise MediaError(f"{self._path}: {self._error}") from self._error

    def _remove(self, path: Path) -> None:
        try:
            with closing(self._file):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MediaError(f"{path}: {error}") from error

    # ---- the encoding thread

    def _encode_chunks(self) -> None:
        """Takes chunks to the end even after an error: ``write`` must not wait for a thread that is gone."""
        index = 0
        while (chunk := self._chunks.get()) is not None:
            if self._error is not None or self._aborted.is_set():
                continue
            try:
                for frame in np.pad(chunk, self._padding, mode="edge"):
                    self._encode(frame, index)
                    index += 1
            except Exception as error:
                self._error = error
        self._close(flush=index > 0 and self._error is None and not self._aborted.is_set())

    def _encode(self, pixels: np.ndarray, index: int) -> None:
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(pixels, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts = index
        frame.time_base = 1 / self._rate
        self._container.mux(self._stream.encode(frame))

    def _close(self, flush: bool) -> None:
        try:
            if flush:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        except Exception as error:
            self._error = self._error or error


def part_path(path: Path) -> Path:
    """Where ``path`` lies until it is whole."""
    return path.with_name(path.name + ".part")


def _sync_folder(path: Path) -> None:
    """Forces the names in a folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
