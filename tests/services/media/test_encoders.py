"""Which encoder a decoder takes. NVENC itself needs a GPU that has it: where there is none, its absence."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from services.media import encoders
from services.media.encoders import NVENC, VP9, X264, NoEncoder, VideoEncoder, choose, nvenc, problem
from services.media.open import open_writer

WITHOUT_GPU = bool(problem(NVENC))


@pytest.mark.parametrize("encoder", [X264, VP9])
def test_the_encoders_of_the_cpu_work(encoder: VideoEncoder) -> None:
    assert problem(encoder) == ""


def test_an_encoder_that_is_not_there_says_so() -> None:
    assert "no_such_codec" in problem(VideoEncoder("no_such_codec"))


def test_what_libav_logs_is_the_reason() -> None:
    level = av.logging.get_level()
    reason = problem(VideoEncoder("libx264", {"profile": "no_such_profile"}))
    assert "profile" in reason and "Errno" not in reason
    assert av.logging.get_level() == level


@pytest.mark.parametrize(
    ("device", "gpu"), [("auto", None), ("cuda", None), ("cuda:0", "0"), ("cuda:3", "3"), ("cpu", None)]
)
def test_nvenc_is_that_of_the_models_gpu(device: str, gpu: str | None) -> None:
    encoder = nvenc(device)
    assert (encoder.codec, encoder.options.get("gpu")) == ("h264_nvenc", gpu)


@pytest.mark.skipif(not WITHOUT_GPU, reason="this machine has NVENC")
def test_without_nvenc_x264_is_taken_quietly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose("auto") is X264
    (record,) = caplog.records
    assert record.levelname == "INFO" and "x264" in record.message and "NVENC" in record.message
    with pytest.raises(NoEncoder, match="NVENC does not encode here: "):
        choose("nvenc")


@pytest.mark.skipif(not WITHOUT_GPU, reason="this machine has NVENC")
def test_a_gpu_that_fails_a_video_gives_way_to_x264(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when all its sessions are taken: it was there at the start, and is not now."""
    caplog.set_level(logging.INFO)
    for name, encoder, size in (("a", NVENC, 256), ("b", X264, 256), ("c", NVENC, 64), ("d", X264, 64)):
        with open_writer(tmp_path / name, "mp4", size, size, 8.0, encoder=encoder) as writer:
            writer.write(np.zeros((5, size, size, 3), np.uint8))
            writer.finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()
    first, second = (record.message for record in caplog.records)
    assert "256x256 by x264, not h264_nvenc" in first
    assert "64x64 by x264" in second and "it takes (160, 64)" in second


@pytest.mark.skipif(WITHOUT_GPU, reason="no NVENC here")
def test_nvenc_writes_what_players_read(tmp_path: Path) -> None:
    encoder = choose("nvenc")
    frames = np.full((17, 240, 416, 3), (200, 60, 120), np.uint8)
    with open_writer(tmp_path / "a.mp4", "mp4", 416, 240, 8.0, encoder=encoder) as writer:
        writer.write(frames)
        writer.finish()
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 17
    assert np.abs(np.stack(decoded).astype(int) - frames).max() <= 6


def test_where_nvenc_works_it_is_taken_and_on_the_models_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[VideoEncoder] = []

    def works(encoder: VideoEncoder) -> str:
        tried.append(encoder)
        return ""

    monkeypatch.setattr(encoders, "problem", works)
    assert choose("x264", "cuda:1") is X264 and not tried
    assert choose("auto") == choose("nvenc", "cuda") == NVENC
    assert choose("auto", "cuda:1").options == {**NVENC.options, "gpu": "1"}
    assert tried[-1].options["gpu"] == "1"
