"""What training computes is what the pipeline computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy.training import budget, clips, denoiser, scenes, vae, words
from deploy.training.log import Log

CPU = torch.device("cpu")


@pytest.mark.parametrize("variant", vae.VARIANTS)
@torch.no_grad()
def test_a_whole_clip_is_coded_as_the_library_does_it_chunk_by_chunk(variant: str) -> None:
    torch.manual_seed(0)
    model = vae.build(variant)
    for parameter in model.parameters():  # the fresh ones look at no frame but the last
        parameter.add_(0.02 * torch.randn_like(parameter))
    pixels, _ = scenes.draw(scenes.random_scenes(1, scenes.TRAINING, torch.Generator().manual_seed(0)))
    latents = clips.encode(model, pixels)
    assert latents.shape[1:] == vae.latent_size(model.config)
    torch.testing.assert_close(latents, model.encode(pixels).latent_dist.mode(), rtol=1e-4, atol=1e-4)
    decoded = clips.decode(model, latents).clamp(-1, 1)
    torch.testing.assert_close(decoded, model.decode(latents).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_text_counts_as_if_it_were_padded_to_full_length() -> None:
    tokenizer = words.tokenizer()
    trainee = denoiser.Denoiser(8, len(tokenizer), CPU, seed=0)
    texts = ["a red circle moving right", "in blue, qq3, a disc"]

    def tokens(length: int) -> torch.Tensor:
        padded = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
        return torch.as_tensor(padded.input_ids)

    def velocity(states: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        noisy = torch.randn(2, 8, 2, 4, 4, generator=generator)
        given = {"hidden_states": noisy, "timestep": torch.tensor([500.0, 900.0])}
        return torch.as_tensor(
            trainee.transformer(**given, encoder_hidden_states=states, return_dict=False)[0]
        )

    short = velocity(trainee.encode(tokens(denoiser.LONGEST)))
    trainee.finish()
    full = velocity(trainee.encode(tokens(denoiser.SEQUENCE))[:, : denoiser.SEQUENCE])
    torch.testing.assert_close(short, full, rtol=1e-4, atol=1e-5)
    other = velocity(trainee.encode(tokens(denoiser.LONGEST)))
    assert not torch.allclose(short, other, rtol=1e-4, atol=1e-5)


def test_a_vae_and_a_denoiser_learn_for_some_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "MEASURED_CLIPS", 16)
    log = Log(tmp_path / "metrics.jsonl")
    trained = vae.train("scale4", budget.Budget(steps=2), 1, CPU, 0, log)
    assert len(trained.config.latents_mean) == trained.config.z_dim
    stored = denoiser.latents(trained, 16, CPU, 0)
    spread, middle = torch.std_mean(stored.values, dim=(0, 2, 3, 4))
    assert spread.sub(1).abs().max() < 0.5 and middle.abs().max() < 0.5

    trainee = denoiser.Denoiser(trained.config.z_dim, len(words.tokenizer()), CPU, seed=0)
    before = {name: value.clone() for name, value in trainee.transformer.state_dict().items()}
    captions = torch.full((len(scenes.MEANINGS), 1, denoiser.LONGEST), denoiser.END)
    trainee.train(stored, captions, 2, budget.Budget(steps=2), log)
    after = trainee.transformer.state_dict()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) // 2


def test_rates_rise_then_fall_and_budgets_end() -> None:
    rates = [budget.rate(spent / 100, 1.0) for spent in range(101)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0, abs=1e-3) and 1 <= top <= 5
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)
    spending = budget.Budget(steps=4)
    assert spending.spent == 0
    spending.done = 4
    assert spending.spent == 1
    with pytest.raises(ValueError, match="steps or seconds"):
        budget.Budget()


def test_an_average_forgets_the_start() -> None:
    parameter = torch.nn.Parameter(torch.tensor([100.0]))
    average = budget.Average([parameter], decay=0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(200):
        average.update()
    with torch.no_grad():
        parameter.fill_(50.0)
    average.apply()
    assert parameter.item() == pytest.approx(1.0, abs=1e-3)
