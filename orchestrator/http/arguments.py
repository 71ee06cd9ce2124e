"""The command-line options about clients: who may use the HTTP API, and what it may do for them."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.http.api_keys import ApiKeys, load_api_keys
from orchestrator.http.options import HttpOptions
from orchestrator.http.signing import UrlSigner, load_secret
from orchestrator.targets import Targets
from orchestrator.webhooks import WebhookOptions, load_webhook_secret

# How long a client may take, by the names that they have in ``HttpOptions``.
_TIMES = {
    "header_timeout": "for the first request of a connection to arrive, up to its body",
    "body_timeout": "for a request's body to arrive",
    "linger_timeout": "that the rest of a body, which the answer did not need, is still taken in",
    "keepalive_timeout": "that a connection stays open between two requests; longer than clients, or a proxy,"
    " keep it in their pools",
    "download_timeout": "for a client to take in a whole file",
    "send_timeout": "for a client to take in an event, or the next 64 KiB of a reply",
}

# In the data directory.
URL_SECRET = "url-secret"
WEBHOOK_SECRET = "webhook-secret"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("clients").add_argument
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="the keys of which clients must show one, a line each: NAME KEY or KEY; further ones can be in"
        " the environment variable TRIPTYCH_API_KEYS, separated by commas (default: everybody is served)",
    )
    add(
        "--url-secret-file",
        type=Path,
        metavar="FILE",
        help="the secret that signs links to videos where there are API keys, the same for all orchestrators"
        " on one database, made by triptych keys --token (default: made in the data directory)",
    )
    add(
        "--url-ttl",
        type=float,
        default=86400.0,
        metavar="S",
        help="how long such a link is good for (default: %(default)s)",
    )
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="a web page's http(s)://host[:port] from which browsers may use the API; can be repeated"
        " (default: none)",
    )
    add(
        "--max-fields",
        type=int,
        default=HttpOptions.max_fields,
        metavar="N",
        help="fields of a request (default: %(default)s)",
    )
    for name, of in _TIMES.items():
        default = getattr(HttpOptions, name)
        add(
            f"--{name.replace('_', '-')}",
            type=float,
            default=default,
            metavar="S",
            help=f"{of} (default: %(default)s)",
        )
    add(
        "--max-streams",
        type=int,
        default=256,
        metavar="N",
        help="streams of events that may be open at one time; more are answered 429 (default: %(default)s)",
    )
    add(
        "--webhook-allow",
        action="append",
        metavar="HOST[:PORT]",
        help="a host that requests may name as webhook_url; or, like 10.0.0.0/8, a private network that such"
        " a host may be in; can be repeated (default: none, and webhook_url is refused)",
    )
    add(
        "--webhook-secret-file",
        type=Path,
        metavar="FILE",
        help="the secret that signs webhooks: whsec_ and 24 to 64 bytes in base64 (default: made in the data"
        " directory)",
    )

    add(
        "--reference-allow",
        action="append",
        metavar="HOST[:PORT]",
        help="a host from which reference images are fetched that requests name by URL; or, like 10.0.0.0/8,"
        " a private network that such a host may be in; can be repeated (default: none: URLs are refused)",
    )
    add(
        "--reference-timeout",
        type=float,
        default=20.0,
        metavar="S",
        help="to fetch one reference image (default: %(default)s)",
    )


@dataclass(frozen=True)
class Access:
    """Who may use the API, and whom it may call."""

    keys: ApiKeys | None
    signer: UrlSigner | None  # of links for those without a key
    origins: tuple[str, ...]  # of web pages
    webhooks: WebhookOptions | None  # None: there are none
    references: Targets | None  # where images may be fetched; None: nowhere


def access(args: argparse.Namespace, data_dir: Path) -> Access:
    """Raises OSError or ValueError that names the file or the option."""
    origins = tuple(args.cors_origin or ())
    webhooks = _webhooks(args, data_dir)
    references = Targets(args.reference_allow, "--reference-allow") if args.reference_allow else None
    keys = load_api_keys(args.api_key_file, os.environ)
    if keys is None:
        if args.url_secret_file is not None:
            raise ValueError("--url-secret-file: links are signed only where there are API keys")
        return Access(None, None, origins, webhooks, references)
    secret = load_secret(args.url_secret_file, data_dir / URL_SECRET)
    return Access(keys, UrlSigner(secret, args.url_ttl), origins, webhooks, references)


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Those of connections and of what clients send, as ``HttpOptions`` names them."""
    return {
        "max_fields": args.max_fields,
        "max_streams": args.max_streams,
        "header_timeout": args.header_timeout,
        "body_timeout": args.body_timeout,
        "linger_timeout": args.linger_timeout,
        "keepalive_timeout": args.keepalive_timeout,
        "download_timeout": args.download_timeout,
        "send_timeout": args.send_timeout,
    }


def _webhooks(args: argparse.Namespace, data_dir: Path) -> WebhookOptions | None:
    if not args.webhook_allow:
        if args.webhook_secret_file is not None:
            raise ValueError("--webhook-secret-file: webhooks are sent only with --webhook-allow")
        return None
    targets = Targets(args.webhook_allow, "--webhook-allow")
    return WebhookOptions(targets, load_webhook_secret(args.webhook_secret_file, data_dir / WEBHOOK_SECRET))
