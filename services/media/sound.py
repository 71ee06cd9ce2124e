"""The sound track of a video in the making: samples go into the file along with their frames."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.output import OutputContainer
from av.packet import Packet

from services.model.base import Sound

CODECS = {"mp4": "aac", "webm": "libopus"}
BITS = {"aac": 96_000, "libopus": 64_000}  # per second and channel
RATES = {"aac": (44_100, 48_000), "libopus": (48_000,)}  # taken as they are; others become RATE
RATE = 48_000
LAYOUTS = {1: "mono", 2: "stereo"}


class SoundTrack:
    """As long as the frames, to the sample: sound that is longer is cut, shorter sound ends in silence."""

    def __init__(self, container: OutputContainer, format: str, sound: Sound, fps: Fraction) -> None:
        """Adds a stream to the container. Raises ValueError for sound that no file can hold."""
        check_sound(sound)
        codec = CODECS[format]
        self._samples = np.clip(sound.samples, -1.0, 1.0).astype(np.float32, copy=False)
        self._layout = LAYOUTS[len(sound.samples)]
        self._source_rate = sound.rate
        self._fps = fps
        self._done = 0  # samples of the source
        self.rate = sound.rate if sound.rate in RATES[codec] else RATE  # of the file
        stream = container.add_stream(codec, rate=self.rate)
        assert isinstance(stream, AudioStream)
        self._stream = stream
        stream.codec_context.layout = self._layout
        stream.codec_context.bit_rate = BITS[codec] * len(sound.samples)

    def encode_until(self, num_frames: int) -> list[Packet[AudioStream]]:
        """The packets that are ready when the sound of so many frames is encoded."""
        end = round(num_frames * self._source_rate / self._fps)
        piece = self._samples[:, self._done : end]
        missing = end - self._done - piece.shape[1]
        frame = AudioFrame.from_ndarray(
            np.ascontiguousarray(np.pad(piece, ((0, 0), (0, missing)))), format="fltp", layout=self._layout
        )
        frame.sample_rate = self._source_rate
        frame.pts = self._done
        frame.time_base = Fraction(1, self._source_rate)
        self._done = end
        # The codec's own resampler brings it to the stream's rate and cuts it into the codec's frames.
        return self._stream.encode(frame) if frame.samples else []

    def flush(self) -> list[Packet[AudioStream]]:
        return self._stream.encode(None)


def check_sound(sound: Sound) -> None:
    """Raises ValueError."""
    samples = sound.samples
    if samples.dtype != np.float32 or samples.ndim != 2 or len(samples) not in LAYOUTS:
        raise ValueError(
            f"sound is {samples.dtype} {samples.shape}, expected float32 (channels, n) of 1 or 2 channels"
        )
    if not 8_000 <= sound.rate <= 192_000:
        raise ValueError(f"sound has {sound.rate} samples per second, expected 8000 to 192000")
    if not np.isfinite(samples).all():
        raise ValueError("sound has samples that are no numbers")
