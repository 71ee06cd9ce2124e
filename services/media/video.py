"""Writes frames and sound into a video file while they are still being computed."""

from __future__ import annotations

import logging
import queue
import threading
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container.output import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from services.media.encoders import X264, VideoEncoder
from services.media.files import MediaError, PartFile, part_path
from services.media.sound import SoundTrack
from services.media.writer import MediaFacts, check_frames
from services.model.base import Sound

log = logging.getLogger(__name__)

QUEUE_CHUNKS = 4  # not yet encoded; then write() waits
# Of a frame: for fewer, starting threads takes longer than its colours do.
PIXELS_FOR_THREADS = 512 * 512
# The index in front, so that players need not wait for the end.
CONTAINER_OPTIONS = {
    "mp4": {"movflags": "+faststart"},
    "webm": {
        "cues_to_front": "1",
        "cluster_time_limit": "1000",  # ms that are kept in memory until they are written
        "fflags": "+bitexact",  # without the random number that tells files apart
    },
}


class VideoWriter:
    """Implements ``services.media.writer.Writer``: H.264 and AAC in MP4, or VP9 and Opus in WebM; 4:2:0,
    BT.709.

    Encodes on a thread of its own. Equal frames give equal bytes on one machine, of an encoder on the CPU.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: float,
        *,
        container: str = "mp4",
        sound: Sound | None = None,
        encoder: VideoEncoder = X264,
    ) -> None:
        """Frames are ``width`` x ``height``; an odd size is made even by repeating the last column or row.

        ``sound`` begins with the first frame and is cut or filled up to the length of the frames. An
        ``encoder`` that cannot take this video gives way to x264. Raises MediaError when the file cannot be
        made, ValueError when ``fps`` is not positive or the sound is none.
        """
        rate = Fraction(fps).limit_denominator(1001)
        if rate <= 0:
            raise ValueError(f"fps is {fps}, expected more than 0")
        self._path = path
        self._size = (width, height)
        self._padding = ((0, height % 2), (0, width % 2), (0, 0))
        self._rate = rate
        self._num_frames = 0
        self._error: Exception | None = None
        self._closed = False
        self._aborted = threading.Event()
        self._reformatter = VideoReformatter()  # a frame's own would be set up anew for each
        self._chunks: queue.Queue[np.ndarray | None] = queue.Queue(QUEUE_CHUNKS)
        self._container, self._stream = self._open(container, encoder)
        self._sound = SoundTrack(self._container, container, sound, rate) if sound is not None else None
        self._file = PartFile(path)  # libav opens it with the first frame: too late to refuse
        self._thread = threading.Thread(target=self._encode_chunks, name="video", daemon=True)
        self._thread.start()

    def write(self, frames: np.ndarray) -> None:
        check_frames(frames, *self._size)
        self._raise_error()
        self._num_frames += len(frames)
        self._chunks.put(frames)

    def finish(self) -> MediaFacts:
        self._join()
        try:
            if self._num_frames == 0:
                raise MediaError(f"{self._path}: no frames were written")
            self._raise_error()
        except MediaError:
            self._file.discard()
            raise
        return MediaFacts(
            self._file.publish(),
            self._stream.width,
            self._stream.height,
            self._num_frames,
            float(self._rate),
            self._sound.rate if self._sound is not None else 0,
        )

    def abort(self) -> None:
        if not self._closed:
            self._aborted.set()
            self._join()
            self._file.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _open(self, format: str, encoder: VideoEncoder) -> tuple[OutputContainer, VideoStream]:
        """The container with its video stream. Nothing is written yet."""
        width, height = (side + side % 2 for side in self._size)
        while True:
            # "file:" lest a colon in the path be taken for a protocol.
            container = av.open(
                f"file:{part_path(self._path)}", "w", format=format, options=CONTAINER_OPTIONS[format]
            )
            stream = container.add_stream(encoder.codec, rate=self._rate, options=dict(encoder.options))
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p"
            stream.time_base = 1 / self._rate
            codec = stream.codec_context
            codec.color_range = ColorRange.MPEG
            codec.colorspace = Colorspace.ITU709
            codec.color_primaries = ColorPrimaries.BT709
            codec.color_trc = ColorTrc.BT709
            if not encoder.on_gpu:
                return container, stream
            try:
                if not encoder.takes(width, height):
                    raise ValueError(f"it takes {encoder.smallest} to {encoder.largest}")
                codec.open()  # a GPU has only so many sessions, and only so much memory
                return container, stream
            except (FFmpegError, ValueError) as error:
                log.info("%s: %dx%d by x264, not %s: %s", self._path, width, height, encoder.codec, error)
                encoder = X264

    def _join(self) -> None:
        self._closed = True
        self._chunks.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise MediaError(f"{self._path}: {self._error}") from self._error

    # ---- the encoding thread

    def _encode_chunks(self) -> None:
        """Takes chunks to the end even after an error: ``write`` must not wait for a thread that is gone."""
        index = 0
        while (chunk := self._chunks.get()) is not None:
            if self._error is not None or self._aborted.is_set():
                continue
            try:
                for frame in chunk:
                    self._encode(frame, index)
                    index += 1
            except Exception as error:
                self._error = error
        self._close(flush=index > 0 and self._error is None and not self._aborted.is_set())

    def _encode(self, pixels: np.ndarray, index: int) -> None:
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.pad(pixels, self._padding, mode="edge"), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1 if pixels.shape[0] * pixels.shape[1] < PIXELS_FOR_THREADS else None,
        )
        frame.pts = index
        frame.time_base = 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        if self._sound is not None:
            self._container.mux(self._sound.encode_until(index + 1))

    def _close(self, flush: bool) -> None:
        try:
            if flush:
                self._container.mux(self._stream.encode(None))
                if self._sound is not None:
                    self._container.mux(self._sound.flush())
            self._container.close()
        except Exception as error:
            self._error = self._error or error
