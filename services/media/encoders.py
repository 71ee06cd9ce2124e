"""The encoders of video: x264 and VP9 on the CPU, NVENC where there is a GPU that has it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
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
    kind, _, number = device.partition(":")
    gpu = {"gpu": number} if kind == "cuda" and number else {}
    encoder = replace(NVENC, options={**NVENC.options, **gpu})
    reason = problem(encoder)
    if not reason:
        log.info("video encoder: NVENC")
        return encoder
    if wanted == "nvenc":
        raise NoEncoder(f"NVENC does not encode here: {reason}")
    log.info("video encoder: x264 (NVENC does not encode here: %s)", reason)
    return X264


def problem(encoder: VideoEncoder) -> str:
    """Encodes one frame; returns what went wrong, or nothing.

    Only that tells: libav has h264_nvenc on machines without a GPU too, and data centre GPUs such as A100 and
    H100 have a driver but no encoder.
    """
    try:
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
    except (FFmpegError, ValueError) as error:  # ValueError: a libav without this codec
        return str(error)
    return "" if any(packet.size for packet in packets) else "it gave no packet"
