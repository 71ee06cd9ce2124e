"""Trains the demo model's ``UMT5EncoderModel`` and ``WanTransformer3DModel`` together, on stored latents."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from deploy.training import clips, scenes, words
from deploy.training.budget import Average, Budget, rate
from deploy.training.log import Log

TEXT_DIM = 128
FLOW_SHIFT = 8.0  # as the scheduler's
TIMESTEPS = 1000
PAD, END = 0, 1  # in the tokenizer's vocabulary
SEQUENCE = 512  # tokens: pipelines pad texts with zeros to that length
LONGEST = 32  # tokens of a caption
CAPTIONS = 1000  # for each meaning
EMPTY = 0.12  # texts that say nothing: what guidance leads away from

PEAK_RATE = 1e-3
DECAY = 0.999
CLIP = 1.0  # the gradient's norm
ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class Latents:
    """Of n clips."""

    values: torch.Tensor  # float32 (n, z_dim, frames, height, width), normalised
    meaning: torch.Tensor  # int64 (n,), into MEANINGS
    noise: torch.Tensor | None = None  # as values: what each is to be made of; None is any


@torch.no_grad()
def latents(vae: Any, count: int, device: torch.device, seed: int) -> Latents:
    """Of random training scenes, as many as a multiple of ENCODED_AT_ONCE allows."""
    generator = torch.Generator(device).manual_seed(seed)
    mean, deviation = normal(vae)
    values, meanings = [], []
    for _ in range(math.ceil(count / ENCODED_AT_ONCE)):
        drawn = scenes.random_scenes(ENCODED_AT_ONCE, scenes.TRAINING, generator)
        values.append((clips.encode(vae, scenes.draw(drawn)[0]) - mean) / deviation)
        meanings.append(drawn.meaning)
    return Latents(torch.cat(values), torch.cat(meanings))


def normal(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of a VAE's latents, (z_dim, 1, 1, 1) each: normalised ones have 0 and 1."""
    mean, deviation = (
        torch.tensor(values, device=vae.device)[:, None, None, None]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def caption_tokens(tokenizer: Any, seed: int) -> torch.Tensor:
    """int64 (meanings, CAPTIONS, LONGEST): training's captions for each meaning, with zeros behind them."""
    chance = random.Random(seed)
    texts = [words.training_caption(each, chance) for each in scenes.MEANINGS for _ in range(CAPTIONS)]
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt"
    ).input_ids
    return torch.as_tensor(tokens).view(len(scenes.MEANINGS), CAPTIONS, LONGEST)


class Denoiser:
    """The two models in training.

    Pipelines pad a text with zeros to SEQUENCE tokens, and attention looks at these as well. Here one of
    them stands for most: attention to it is biased by the logarithm of how many they are, which is the same.
    """

    def __init__(self, channels: int, vocabulary: int, device: torch.device, seed: int) -> None:
        """For latents of that many channels."""
        from diffusers import WanTransformer3DModel
        from transformers import UMT5Config, UMT5EncoderModel

        torch.manual_seed(seed)
        self.text_encoder: Any = UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocabulary,
                d_model=TEXT_DIM,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        ).to(device)
        self.transformer: Any = WanTransformer3DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=channels,
            out_channels=channels,
            text_dim=TEXT_DIM,
            freq_dim=128,
            ffn_dim=576,
            num_layers=6,
        ).to(device)
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._bias = torch.zeros(1, 1, 1, LONGEST + 1, device=device)
        self._bias[..., -1] = math.log(SEQUENCE - LONGEST)
        for block in self.transformer.blocks:
            block.attn2.set_processor(_Biased(self._bias))

    def load(self, folder: Path) -> None:
        """The weights of a model's folder."""
        from diffusers import WanTransformer3DModel
        from transformers import UMT5EncoderModel

        for mine, kind, name in (
            (self.text_encoder, UMT5EncoderModel, "text_encoder"),
            (self.transformer, WanTransformer3DModel, "transformer"),
        ):
            mine.load_state_dict(kind.from_pretrained(folder / name, dtype=torch.float32).state_dict())

    def loss(
        self, clean: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Flow matching: of normalised latents (n, z_dim, frames, height, width), ids (n, LONGEST), and the
        noise that they are made of, if it is not any.
        """
        n = len(clean)

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=self._generator, device=self._device)

        tokens = torch.where(uniform(n, 1) < EMPTY, _nothing(tokens), tokens)
        sigma = FLOW_SHIFT / (FLOW_SHIFT - 1 + 1 / uniform(n).clamp(min=1e-6))
        if noise is None:
            noise = torch.randn(clean.shape, generator=self._generator, device=self._device)
        way = sigma[:, None, None, None, None]
        # Timesteps as the scheduler's, which are whole.
        velocity = self._velocity(
            torch.lerp(clean, noise, way), (sigma * TIMESTEPS).floor(), self.encode(tokens)
        )
        return F.mse_loss(velocity, noise - clean)

    @torch.no_grad()
    def sample(self, noise: torch.Tensor, tokens: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
        """Normalised latents that the noise (n, z_dim, frames, height, width) becomes, as in pipelines."""
        scheduler = make_scheduler()
        scheduler.set_timesteps(steps, device=self._device)
        texts = self.encode(torch.cat([_nothing(tokens), tokens]))
        latents = noise
        for timestep in scheduler.timesteps:
            both = self._velocity(torch.cat([latents, latents]), timestep.expand(len(texts)), texts)
            without, told = both.chunk(2)
            latents = scheduler.step(
                torch.lerp(without, told, guidance), timestep, latents, return_dict=False
            )[0]
        return latents

    def _velocity(self, noisy: torch.Tensor, timestep: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        given = {"hidden_states": noisy, "timestep": timestep, "encoder_hidden_states": texts}
        # In float32 a CPU takes twice as long. Normalisations keep float32 weights: no harm but a warning.
        on_cpu = self._device.type == "cpu"
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=on_cpu):
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            return torch.as_tensor(self.transformer(**given, return_dict=False)[0]).float()

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, LONGEST + 1, TEXT_DIM): zeros where a text has ended, and once more for all the rest."""
        mask = (tokens != PAD).long()
        states = self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return F.pad(states * mask[..., None], (0, 0, 0, 1))

    def train(
        self,
        stored: Latents,
        captions: torch.Tensor,
        batch: int,
        budget: Budget,
        log: Log,
        peak: float = PEAK_RATE,
    ) -> None:
        """Until the budget is spent; then the weights are averages."""
        parameters = [*self.text_encoder.parameters(), *self.transformer.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=self._device.type == "cuda"
        )
        average = Average(parameters, DECAY)
        while (spent := budget.spent) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate(spent, peak)
            chosen = self._among(len(stored.values), batch)
            said = captions[stored.meaning[chosen], self._among(captions.shape[1], batch)]
            loss = self.loss(
                stored.values[chosen], said, None if stored.noise is None else stored.noise[chosen]
            )
            torch.autograd.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            budget.done += 1
            if budget.done % 50 == 0:
                figures = {"loss": loss.item(), "norm": norm.item(), "seconds": budget.seconds}
                log("denoiser", step=budget.done, **figures)
        average.apply()

    def compile(self, size: tuple[int, ...], batch: int, log: Log) -> None:
        """Compiles the transformer's blocks for latents (z_dim, frames, height, width), where that works."""
        clean = torch.zeros(batch, *size, device=self._device)
        tokens = torch.full((batch, LONGEST), END, device=self._device)
        try:
            self.transformer.compile_repeated_blocks()
            torch.autograd.backward(self.loss(clean, tokens))
        except Exception as error:  # no C compiler, an operator without a kernel: whatever it is, it can wait
            log("not compiled", reason=str(error)[:300])
            torch._dynamo.reset()
            for block in self.transformer.blocks:
                block._compiled_call_impl = None
        self.text_encoder.zero_grad()
        self.transformer.zero_grad()

    def finish(self) -> None:
        """Attention as it comes with the library, for texts of full length."""
        for block in self.transformer.blocks:
            block.attn2.set_processor(WanAttnProcessor())

    def _among(self, count: int, batch: int) -> torch.Tensor:
        return torch.randint(count, (batch,), generator=self._generator, device=self._device)


def make_scheduler() -> Any:
    """The model's."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )


def _nothing(tokens: torch.Tensor) -> torch.Tensor:
    """As many texts that say nothing."""
    nothing = torch.zeros_like(tokens)
    nothing[:, 0] = END
    return nothing


class _Biased(WanAttnProcessor):  # type: ignore[misc]
    """Attention with a bias."""

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self._bias = bias

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        attended = super().__call__(attn, hidden_states, encoder_hidden_states, self._bias, rotary_emb)
        return torch.as_tensor(attended)
