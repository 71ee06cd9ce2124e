"""A reference image that decides the aspect of a video."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from deploy.tiny import wan
from services.media.store import LocalStore
from services.stage import MediaStage
from tests.services.model.support import Recorder, Roles, generation
from triptych_proto.control_pb2 import Run


def test_the_file_has_the_size_of_the_frames(tmp_path: Path) -> None:
    roles = Roles(wan.build_from_image(tmp_path / "model"))
    request = generation(width=64, height=64, num_inference_steps=1)
    image = Image.effect_noise((60, 120), 90).convert("RGB")
    encoded = roles.encoder.run(request, {}, Recorder(), [image])
    assert encoded["width"] == 32 and "height" not in encoded  # it is as in the request
    latents = roles.denoiser.run(request, encoded, Recorder())
    run = Run(task_id="a", generation=request)
    stage = MediaStage(roles.decoder, LocalStore(tmp_path / "videos"))
    product = stage.run(run, latents, Recorder())
    stage.accept(product)
    assert product.file is not None
    assert (product.file.width, product.file.height, product.file.num_frames) == (32, 64, 5)
    assert torch.is_tensor(latents["latents"]) and latents["latents"].shape[-2:] == (8, 4)
