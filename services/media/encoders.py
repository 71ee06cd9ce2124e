"""The encoders of video: x264 and VP9 on the CPU, NVENC where there is a GPU that has it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from av import logging as logs
from av.codec.context import CodecContext
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

log = logging.getLogger(__name__)

CHOICES = ("auto", "x264", "nvenc")  # of the encoder of MP4


@dataclass(frozen=True)
class VideoEncoder:
    """A video codec of libav, its settings, and the frames it takes (width, height in pixels)."""

    codec: str
    options: Mapping[str, str] = field(default_factory=dict)
    smallest: tuple[int, int] = (1, 1)
    largest: tuple[int, int] = (16384, 16384)
    on_gpu: bool = False  # it may fail for reasons of its own

    def takes(self, width: int, height: int) -> bool:
        return self.smallest[0] <= width <= self.largest[0] and self.smallest[1] <= height <= self.largest[1]


def x264(crf: int = 18, preset: str = "veryfast") -> VideoEncoder:
    """``crf`` is the quality (0 lossless, 51 worst), ``preset`` the speed."""
    return VideoEncoder("libx264", {"crf": str(crf), "preset": preset})


X264 = x264()
# Sizes within what every generation takes: 145 x 49 to 4096 x 4096 for H.264, as NVIDIA documents.
NVENC = VideoEncoder(
    "h264_nvenc",
    {"preset": "p4", "tune": "hq", "rc": "vbr", "cq": "19", "b": "0"},
    smallest=(160, 64),
    largest=(4096, 4096),
    on_gpu=True,
)
VP9 = VideoEncoder(
    "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "24", "b": "0"}
)


class NoEncoder(Exception):
    """The encoder that was asked for does not work on this machine; says why."""


def choose(wanted: str, device: str = "auto") -> VideoEncoder:
    """The encoder of MP4 for one of ``CHOICES``; NVENC is tried by encoding a frame. Takes a moment.

    ``device`` is the model's: frames are encoded on the GPU that makes them. Raises NoEncoder where ``nvenc``
    was demanded and does not work.
    """
    if wanted == "x264":
        return X264
    encoder = nvenc(device)
    reason = problem(encoder)
    if not reason:
        log.info("video encoder: NVENC")
        return encoder
    if wanted == "nvenc":
        raise NoEncoder(f"NVENC does not encode here: {reason}")
    log.info("video encoder: x264 (NVENC does not encode here: %s)", reason)
    return X264


def nvenc(device: str) -> VideoEncoder:
    """That of the GPU that ``device`` names; if it names none, of the first."""
    kind, _, number = device.partition(":")
    gpu = {"gpu": number} if kind == "cuda" and number else {}
    return replace(NVENC, options={**NVENC.options, **gpu})


def problem(encoder: VideoEncoder) -> str:
    """Encodes one frame; returns what went wrong, in the words of libav's log, or nothing.

    Only that tells: libav has h264_nvenc on machines without a GPU too, and data centre GPUs such as A100 and
    H100 have a driver but no encoder.
    """
    level = logs.get_level()
    logs.set_level(logs.ERROR)
    try:
        with logs.Capture() as said:  # its errors are a number: what it logs says what is missing
            return _try(encoder)
    except FFmpegError as error:
        return "; ".join(line.strip() for _, _, line in said) or str(error)
    except ValueError as error:  # a libav without this codec
        return str(error)
    finally:
        logs.set_level(level)


def _try(encoder: VideoEncoder) -> str:
    context = CodecContext.create(encoder.codec, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = 256, 256
    context.pix_fmt = "yuv420p"
    context.framerate = Fraction(8)
    context.time_base = Fraction(1, 8)
    context.options = dict(encoder.options)
    frame = VideoFrame.from_ndarray(np.zeros((256, 256, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, context.time_base
    packets = [*context.encode(frame.reformat(format="yuv420p")), *context.encode(None)]
    return "" if any(packet.size for packet in packets) else "it gave no packet"
