"""The options of a role process."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import credentials, output_options
from services.credentials import Credentials
from services.media.encoders import CHOICES
from services.output_options import OutputOptions
from services.role import Role
from transfer.engines import mooncake_setup
from transfer.engines.mooncake_setup import PROTOCOLS, MooncakeOptions
from transfer.keys import TransferKeys
from transfer.urls import EndpointURL

# What may be chosen, and the engines that then serve, best first.
ENGINES = {
    "auto": ("shm", "zmq"),
    "shm": ("shm",),
    "zmq": ("zmq",),
    "mooncake": ("mooncake", "zmq"),  # not shared memory: who chooses mooncake wants to see it used
}


def add_arguments(parser: argparse.ArgumentParser, role: Role) -> None:
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="DIR",
        help="a diffusers model folder, or the id of one on a model hub",
    )
    add(
        "--url",
        required=True,
        type=_url,
        metavar="grpc://HOST:PORT",
        help="where the orchestrator and the other roles reach this process; also its identity",
    )
    add(
        "--listen",
        metavar="HOST[:PORT]",
        help="bind to this address instead of the one in --url, for example 0.0.0.0 (default: the URL's)",
    )
    add(
        "--orchestrator",
        nargs="+",
        default=[],
        metavar="http://HOST:PORT",
        help="announce this role to these orchestrators, which then need not list its URL",
    )
    add_model_arguments(parser)
    if role is Role.ENCODER:
        add_encoder_arguments(parser)
    if role is Role.DECODER:
        add(
            "--video-encoder",
            choices=CHOICES,
            default="auto",
            help="of MP4: auto is nvenc where it is seen to work, else x264 (default: %(default)s)",
        )
        output_options.add_arguments(parser)
    if role is Role.ENCODER:
        add(
            "--max-reference-pixels",
            type=_positive(int),
            default=1 << 25,
            metavar="N",
            help="width times height of a reference image, as its file says (default: %(default)s)",
        )
    if role is Role.DENOISER:
        add_batch_arguments(parser)
    add_worker_arguments(parser)
    credentials.add_arguments(parser)
    add(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="(default: %(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What all roles of one model have in common."""
    add = parser.add_argument_group("model").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, else cpu)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    add(
        "--served-model-name", metavar="NAME", help="what clients call the model (default: the folder's name)"
    )
    add(
        "--max-pixels",
        type=_positive(int),
        metavar="N",
        help="width times height of the largest request; pools are sized by it (default: 1280 * 720, or what"
        " the model makes by default if that is more)",
    )
    add(
        "--max-frames",
        type=_positive(int),
        default=129,
        metavar="N",
        help="frames of the longest request; pools are sized by it (default: %(default)s)",
    )
    add(
        "--max-steps",
        type=_positive(int),
        default=200,
        metavar="N",
        help="denoising steps of the longest request (default: %(default)s)",
    )
    add(
        "--threads",
        type=_positive(int),
        metavar="N",
        help="CPU threads for computing (default: torch's own choice); results depend on it in the last bit",
    )


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("encoder").add_argument(
        "--embedding-cache",
        type=_positive(int, zero=True),
        default=512 << 20,
        metavar="N",
        help="bytes of memory for texts that were encoded before; 0: every prompt and negative prompt is"
        " encoded anew (default: %(default)s)",
    )


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """How a denoiser takes several requests through one loop."""
    parser.add_argument_group("batches").add_argument(
        "--max-batch",
        type=int,
        choices=range(1, 65),
        default=1,
        metavar="N",
        help="take up to N waiting requests of one shape through one denoising loop; their results then equal"
        " those of requests alone within 1e-5, not bit for bit (default: %(default)s)",
    )


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """How tasks and their data are handled."""
    add = parser.add_argument_group("tasks and data plane").add_argument
    add(
        "--prefetch",
        type=_positive(int, zero=True),
        default=1,
        metavar="N",
        help="tasks whose inputs are read while another computes; batches, with --max-batch"
        " (default: %(default)s)",
    )
    add(
        "--transfer",
        choices=tuple(ENGINES),
        default="auto",
        help="how tensors move between roles: auto is shm on one host and zmq over TCP elsewhere; mooncake"
        " is used between roles that both choose it, zmq with others (default: %(default)s)",
    )
    add(
        "--mooncake-protocol",
        choices=PROTOCOLS,
        default="tcp",
        help="what --transfer mooncake moves tensors by; nvlink moves device memory alone and is refused,"
        " with the reason, as long as slots lie in host memory (default: %(default)s)",
    )
    add(
        "--rdma-device",
        default="",
        metavar="NAME[,NAME]",
        help="RDMA devices for --mooncake-protocol rdma, for example mlx5_0 (default: all)",
    )
    add(
        "--mooncake-trusted-network",
        action="store_true",
        help="let --transfer mooncake start: it listens on all interfaces, and whoever reaches its ports"
        " can read and write this role's memory pools",
    )
    add(
        "--transfer-keys",
        type=Path,
        metavar="FILE",
        help="encrypt what zmq moves, and let only roles with the same file read; made by triptych keys"
        " (default: whoever reaches the port can read outputs)",
    )
    add(
        "--outbox-bytes",
        type=_positive(int),
        metavar="N",
        help="pool of outputs (default: from the model's shapes)",
    )
    add(
        "--inbox-bytes",
        type=_positive(int),
        metavar="N",
        help="pool of inputs (default: from the model's shapes)",
    )
    add(
        "--read-seconds",
        type=_positive(float),
        default=60.0,
        metavar="S",
        help="limit for reading one input from a peer (default: %(default)s)",
    )
    add(
        "--pool-seconds",
        type=_positive(float),
        default=600.0,
        metavar="S",
        help="limit for waiting until a pool has room (default: %(default)s)",
    )
    add(
        "--hold-seconds",
        type=_positive(float),
        default=60.0,
        metavar="S",
        help="how long outputs are kept after the orchestrator's stream broke (default: %(default)s)",
    )
    add(
        "--drain-seconds",
        type=_positive(float),
        default=600.0,
        metavar="S",
        help="how long SIGTERM waits for running tasks (default: %(default)s)",
    )


@dataclass(frozen=True)
class RoleOptions:
    """The options of one role, checked."""

    role: Role
    model: str
    url: EndpointURL
    listen: str  # HOST:PORT of the control server
    transfer_listen: str  # host of the data plane's TCP server
    orchestrators: tuple[str, ...]  # to announce this role to
    output: OutputOptions | None  # of a decoder
    video_encoder: str  # of services.media.encoders.CHOICES
    max_reference_pixels: int
    model_options: dict[str, Any]
    capacity: int
    max_batch: int
    engines: tuple[str, ...]
    mooncake: MooncakeOptions | None
    transfer_keys: TransferKeys | None
    credentials: Credentials  # of the control server
    outbox_bytes: int | None
    inbox_bytes: int | None
    read_seconds: float
    pool_seconds: float
    hold_seconds: float
    drain_seconds: float
    log_level: str

    @staticmethod
    def from_arguments(role: Role, args: argparse.Namespace) -> RoleOptions:
        """Raises OSError or ValueError for options that do not fit together and for bad secret files."""
        host, port = _listen(args.listen, args.url)
        output = OutputOptions.from_arguments(args) if role is Role.DECODER else None
        max_batch = getattr(args, "max_batch", 1)
        return RoleOptions(
            role=role,
            model=args.model,
            url=args.url,
            listen=f"{host}:{port}",
            transfer_listen=host.strip("[]"),
            orchestrators=tuple(args.orchestrator),
            output=output,
            video_encoder=getattr(args, "video_encoder", "x264"),
            max_reference_pixels=getattr(args, "max_reference_pixels", 0),  # of the encoder alone
            model_options={
                "device": args.device,
                "dtype": args.dtype,
                "name": args.served_model_name,
                "max_pixels": args.max_pixels,
                "max_frames": args.max_frames,
                "max_steps": args.max_steps,
                "threads": args.threads,
                **({"embedding_cache": args.embedding_cache} if role is Role.ENCODER else {}),
            },
            # So that a batch can gather while another computes, and the next task begins during an upload.
            capacity=max_batch * (1 + args.prefetch) + (output.uploads if output is not None else 0),
            max_batch=max_batch,
            engines=ENGINES[args.transfer],
            mooncake=_mooncake(args) if args.transfer == "mooncake" else None,
            transfer_keys=TransferKeys.load(args.transfer_keys) if args.transfer_keys else None,
            credentials=Credentials.from_arguments(args),
            outbox_bytes=args.outbox_bytes,
            inbox_bytes=args.inbox_bytes,
            read_seconds=args.read_seconds,
            pool_seconds=args.pool_seconds,
            hold_seconds=args.hold_seconds,
            drain_seconds=args.drain_seconds,
            log_level=args.log_level,
        )


def _mooncake(args: argparse.Namespace) -> MooncakeOptions:
    try:
        options = MooncakeOptions(args.mooncake_protocol, args.rdma_device, args.mooncake_trusted_network)
    except PermissionError as error:
        raise PermissionError(f"{error} (--mooncake-trusted-network)") from None
    mooncake_setup.load(options)  # what is missing is said now, not after the model is loaded
    return options


def _listen(text: str | None, url: EndpointURL) -> tuple[str, str]:
    """The host (IPv6 in brackets) and port to bind to."""
    host = url.target.rpartition(":")[0]
    if text is None:
        return host, str(url.port)
    if text.startswith("[") and "]" in text:
        bound, _, rest = text.partition("]")
        return bound + "]", rest.lstrip(":") or str(url.port)
    bound, _, port = text.partition(":")
    return bound or host, port or str(url.port)


def _url(text: str) -> EndpointURL:
    try:
        return EndpointURL.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(kind: type[int] | type[float], zero: bool = False) -> Any:
    def parse(text: str) -> int | float:
        value = kind(text)
        if value < 0 or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"{text} is not {'zero or more' if zero else 'more than zero'}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its errors
    return parse
