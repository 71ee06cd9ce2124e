"""What an operator can set about the HTTP API."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.http.api_keys import ApiKeys
from orchestrator.http.signing import UrlSigner
from orchestrator.targets import Targets

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class HttpOptions:
    """Sizes in bytes, times in seconds.

    ``public_url`` is the address under which clients reach this server, for the absolute URLs in replies;
    without it they are built from each request's Host header. Connections stay open longer than the 300 s
    for which AIPerf pools them: a server that closes first makes a client's next request fail.
    ``cluster_token`` is what operators must show to change the cluster; without one only this host may. With
    ``api_keys`` clients must show one of them, or have a link that ``signer`` has signed.

    Raises:
        ValueError: naming the option.
    """

    public_url: str | None = None
    max_body_bytes: int = 32 << 20
    max_fields: int = 64
    max_prompt_chars: int = 8192
    max_timeout_seconds: float = 3600.0  # that a request may ask for
    ignore_unknown_fields: bool = False  # else a field that is not known is refused
    sync_timeout: float = 600.0  # for a video that its client waits for
    cluster_token: str | None = field(default=None, repr=False)
    api_keys: ApiKeys | None = None
    signer: UrlSigner | None = None
    cors_origins: tuple[str, ...] = ()  # of web pages that may use the API
    webhook_targets: Targets | None = None  # that requests may name; None: no request may
    reference_targets: Targets | None = None  # from which reference images may be fetched; None: from nobody
    reference_timeout: float = 20.0  # to fetch one
    max_streams: int = 256  # of events, at one time
    heartbeat_seconds: float = 15.0  # between two signs of life on a stream where nothing happens
    send_timeout: float = 30.0  # for a client to take in an event, or the next piece of a reply
    header_timeout: float = 30.0  # to receive the first request of a connection
    body_timeout: float = 60.0  # to receive a request's body
    linger_timeout: float = 10.0  # to take in what is left of a body after the reply, so that it is read
    download_timeout: float = 3600.0  # to send one video
    keepalive_timeout: float = 320.0

    def __post_init__(self) -> None:
        if self.public_url is not None:
            url = urlsplit(self.public_url)
            if url.scheme not in ("http", "https") or not url.netloc or url.query or url.fragment:
                raise ValueError(
                    f"public_url {self.public_url!r} is not of the form http(s)://host[:port][/path]"
                )
        for name in ("max_body_bytes", "max_fields", "max_prompt_chars", "max_streams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in (
            "max_timeout_seconds",
            "sync_timeout",
            "reference_timeout",
            "header_timeout",
            "linger_timeout",
            "heartbeat_seconds",
            "send_timeout",
            "body_timeout",
            "download_timeout",
            "keepalive_timeout",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                expected = "an exact origin as browsers send it, in lower case: http(s)://host[:port]"
                raise ValueError(f"cors_origins: {origin!r} is not {expected}")
        if self.cluster_token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.cluster_token):
            raise ValueError("cluster_token must be printable ASCII characters without spaces")
