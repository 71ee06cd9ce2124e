"""What the three stages do on every peer: what Triptych's emulated model does, but for the video file.

Tensors depend on every byte that was handed on before them, so the digest at the end says whether all of it
arrived.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

Tensor: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Work:
    """Bytes that are handed on, seconds that a denoiser sleeps, and how many denoisers there are."""

    embeddings: int
    latents: int
    denoise: float = 0.0
    denoisers: int = 1

    @staticmethod
    def parse(arguments: list[str]) -> tuple[Work, int]:
        """With the port, from the words of ``arguments``; others are left alone."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--embeddings", type=int, required=True)
        parser.add_argument("--latents", type=int, required=True)
        parser.add_argument("--denoise", type=float, default=0.0)
        parser.add_argument("--denoisers", type=int, default=1)
        args, _ = parser.parse_known_args(arguments)
        return Work(args.embeddings, args.latents, args.denoise, args.denoisers), args.port

    def words(self) -> list[str]:
        """What ``parse`` reads, but for the port."""
        found = ["--embeddings", str(self.embeddings), "--latents", str(self.latents)]
        return [*found, "--denoise", str(self.denoise), "--denoisers", str(self.denoisers)]

    def encode(self, prompt: str) -> Tensor:
        return _noise(xxhash.xxh3_64_intdigest(prompt.encode()), self.embeddings)

    def make_latents(self, embeddings: Tensor) -> Tensor:
        key = xxhash.xxh3_64_intdigest(embeddings.data)
        time.sleep(self.denoise)
        return _noise(key, self.latents)

    def decode(self, latents: Tensor) -> str:
        return xxhash.xxh3_64_hexdigest(latents.data)

    def expected(self, prompt: str) -> str:
        """The digest of a prompt whose tensors all arrived."""
        embeddings = self.encode(prompt)
        return self.decode(_noise(xxhash.xxh3_64_intdigest(embeddings.data), self.latents))


def _noise(key: int, count: int) -> Tensor:
    """``count`` bytes, a multiple of eight, that depend on ``key`` alone, made at memory speed."""
    return np.full(count // 8, key, np.uint64)
