"""``python -m deploy.training``: makes the demo model, from nothing to its folder, and says how good it is.

In ``--out``: ``model`` (the folder) and ``model.tar`` of it, ``vae.tar`` as soon as there is one,
``metrics.jsonl``, and pictures of what comes back from each VAE and of what prompts show.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from deploy.training import candidates, denoiser, evaluation, folder, rectify, vae, words
from deploy.training.budget import Budget
from deploy.training.log import Log

STAGES = {"vae": (110.0, 8), "denoiser": (130.0, 128), "rectify": (60.0, 128)}  # seconds, clips a step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--vaes",
        nargs="+",
        choices=tuple(vae.VARIANTS),
        default=["scale4"],
        help="trained side by side; the one that shows shapes best is taken (default: scale4)",
    )
    parser.add_argument("--vae", type=Path, metavar="DIR", help="a trained one, to train none")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a trained one, whose ways are made straight; no more is done",
    )
    for stage, (seconds, batch) in STAGES.items():
        text = f"(default: {seconds:g}; without limit if steps are given)"
        parser.add_argument(f"--{stage}-seconds", type=float, help=text)
        parser.add_argument(f"--{stage}-steps", type=int, help="(default: as many as the seconds allow)")
        parser.add_argument(f"--{stage}-batch", type=int, default=batch, help="(default: %(default)s)")
    parser.add_argument(
        "--clips", type=int, default=16384, help="whose latents train the denoiser (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=8192,
        help="of noise and clip, that make ways straight (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=60,
        help="unseen ones that the model is judged by (default: %(default)s)",
    )
    args = parser.parse_args()
    for name, (seconds, _) in STAGES.items():
        if getattr(args, f"{name}_steps") is None and getattr(args, f"{name}_seconds") is None:
            setattr(args, f"{name}_seconds", seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / candidates.METRICS)
    with tempfile.TemporaryDirectory(prefix="demo-model-") as scratch:
        _make(args, Path(scratch), log)


def _make(args: argparse.Namespace, scratch: Path, log: Log) -> None:
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    log("start", torch=torch.__version__, device=_name(device), arguments=vars(args))
    clock = Budget(seconds=1.0)
    coder_folder = args.model / "vae" if args.model else args.vae
    started = [] if coder_folder else [_candidate(name, args, scratch / name) for name in args.vaes]
    tokenizer = words.tokenizer()
    captions = denoiser.caption_tokens(tokenizer, args.seed).to(device)

    def prepared(size: tuple[int, int, int, int]) -> denoiser.Denoiser:
        trainee = denoiser.Denoiser(size[0], len(tokenizer), device, args.seed)
        if device.type == "cuda":
            trainee.compile(size, args.denoiser_batch, log)
        return trainee

    # A denoiser takes a while to compile: it does so while the VAEs train, where it fits all of them.
    sizes = {vae.latent_size(vae.VARIANTS[name]) for name in args.vaes}
    early = prepared(*sizes) if started and len(sizes) == 1 else None
    log("ready for the VAE", seconds=clock.seconds)
    source = coder_folder or candidates.best(started, log)
    coder = _load_vae(source, device)
    folder.pack(source, args.out / "vae.tar")
    log("VAE", of=source.name, seconds=clock.seconds)

    trainee = early or prepared(vae.latent_size(coder.config))
    if args.model:
        trainee.load(args.model)
    else:
        stored = denoiser.latents(coder, args.clips, device, args.seed)
        log("latents", count=len(stored.meaning), std=stored.values.std().item(), seconds=clock.seconds)
        budget = Budget(args.denoiser_steps, args.denoiser_seconds)
        trainee.train(stored, captions, args.denoiser_batch, budget, log)
        log("denoiser trained", steps=budget.done, seconds=clock.seconds)
    try:
        stored = rectify.pairs(trainee, coder, captions, args.pairs, args.seed, log)
    except rectify.NothingToTeach as error:
        log("ways stay as they are", reason=str(error))
    else:
        budget = Budget(args.rectify_steps, args.rectify_seconds)
        trainee.train(stored, captions, args.rectify_batch, budget, log, rectify.PEAK_RATE)
        log("ways made straight", steps=budget.done, seconds=clock.seconds)
    trainee.finish()
    model = args.out / "model"
    folder.save(model, coder, trainee.text_encoder, trainee.transformer, tokenizer)
    folder.pack(model, args.out / "model.tar")
    log("model", bytes=(args.out / "model.tar").stat().st_size, seconds=clock.seconds)
    evaluation.evaluate(model, device, args.prompts, args.seed, args.out / "prompts.png", log)
    log("end", seconds=clock.seconds)


def _candidate(name: str, args: argparse.Namespace, target: Path) -> candidates.Candidate:
    budget = (args.vae_steps, args.vae_seconds, args.vae_batch)
    return candidates.Candidate(name, target, args.out, args.device, args.seed, budget)


def _load_vae(source: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(source, dtype=torch.float32).to(device).requires_grad_(False)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
