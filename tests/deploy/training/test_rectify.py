"""The ways that are made straight: from noise to what the model itself makes of it, drawn anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from deploy.onebox import DEMO_MODEL
from deploy.training import clips, denoiser, rectify, redraw, scenes, vae, words
from deploy.training.log import Log

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained() -> denoiser.Denoiser:
    found = denoiser.Denoiser(8, len(words.tokenizer()), CPU, seed=0)
    found.load(DEMO_MODEL)
    return found


def test_a_scene_is_found_in_its_video() -> None:
    drawn = scenes.random_scenes(150, range(len(scenes.MEANINGS)), torch.Generator().manual_seed(3))
    videos = vae.to_frames(scenes.draw(drawn)[0])
    numbers = drawn.meaning.tolist()
    assert all(redraw.near(video, scenes.MEANINGS[n]) for video, n in zip(videos, numbers, strict=True))
    found = redraw.nearest(list(videos), numbers, CPU)
    for name in ("x", "y", "radius"):
        torch.testing.assert_close(getattr(found, name), getattr(drawn, name), rtol=0, atol=0.6)
    moving = torch.tensor([scenes.MEANINGS[n].motion != "still" for n in numbers])
    torch.testing.assert_close(found.speed[moving], drawn.speed[moving], rtol=0, atol=0.05)


def test_what_has_the_wrong_shape_is_drawn_in_the_right_one_and_all_else_counts() -> None:
    square = scenes.MEANINGS.index(scenes.Meaning("red", "square", "up", "dark"))
    drawn = scenes.random_scenes(1, [square], torch.Generator().manual_seed(4))
    video = vae.to_frames(scenes.draw(drawn)[0])[0]
    circle = scenes.MEANINGS[square]._replace(shape="circle")
    assert redraw.near(video, circle)
    assert not any(
        redraw.near(video, circle._replace(**{name: value}))
        for name, value in (("colour", "blue"), ("motion", "down"), ("ground", "light"))
    )
    found = redraw.nearest([video], [scenes.MEANINGS.index(circle)], CPU)
    assert found.x.item() == pytest.approx(drawn.x.item(), abs=0.6)
    assert scenes.MEANINGS[found.meaning.item()] == circle


def test_sampling_is_the_pipelines(trained: denoiser.Denoiser) -> None:
    pipeline = WanPipeline.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 8, 5, 16, 16, generator=torch.Generator().manual_seed(5))
    prompt = "a red circle moving right"
    size = {"height": scenes.SIZE, "width": scenes.SIZE, "num_frames": scenes.FRAMES}
    theirs = pipeline(
        prompt, **size, num_inference_steps=3, guidance_scale=2.0, latents=noise, output_type="latent"
    ).frames
    said = words.tokenizer()([prompt], padding="max_length", max_length=denoiser.LONGEST, return_tensors="pt")
    ours = trained.sample(noise, said.input_ids, steps=3, guidance=2.0)
    assert (ours - theirs).square().mean() < 1e-3 * theirs.square().mean()  # on a CPU ours is in bfloat16


def test_pairs_lead_from_noise_to_the_scene_that_the_model_makes_of_it(
    trained: denoiser.Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rectify, "AT_ONCE", 4)
    coder = AutoencoderKLWan.from_pretrained(DEMO_MODEL / "vae", dtype=torch.float32).requires_grad_(False)
    captions = denoiser.caption_tokens(words.tokenizer(), 0)
    pairs = rectify.pairs(trained, coder, captions, 5, 0, Log(tmp_path / "metrics.jsonl"))
    assert pairs.noise is not None and pairs.noise.shape == pairs.values.shape == (5, 8, 5, 16, 16)
    assert set(pairs.meaning.tolist()) <= set(scenes.TRAINING)
    again = trained.sample(pairs.noise, captions[pairs.meaning, 0], rectify.STEPS, rectify.GUIDANCE)
    mean, deviation = denoiser.normal(coder)
    shown, drawn = (
        clips.decode(coder, each * deviation + mean).clamp(-1, 1) for each in (again, pairs.values)
    )
    # With another caption of the same meaning, on the whole the same picture.
    assert (shown - drawn).abs().mean() < 0.5 * (shown - drawn.roll(1, 0)).abs().mean()


def test_a_model_that_is_mostly_wrong_has_nothing_to_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rectify, "AT_ONCE", 1)
    coder = AutoencoderKLWan.from_pretrained(DEMO_MODEL / "vae", dtype=torch.float32).requires_grad_(False)
    untrained = denoiser.Denoiser(8, len(words.tokenizer()), CPU, seed=0)
    captions = torch.full((len(scenes.MEANINGS), 1, denoiser.LONGEST), denoiser.END)
    with pytest.raises(rectify.NothingToTeach, match="of 10 videos only 0 show what their prompts say"):
        rectify.pairs(untrained, coder, captions, 5, 0, Log(tmp_path / "metrics.jsonl"))
