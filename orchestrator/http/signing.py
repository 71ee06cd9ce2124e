"""Signed URLs: links to a video's file that work without a key, for a time."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from orchestrator.http.errors import ApiError
from transfer.secrets import read_token, write_token

_EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)


class UrlSigner:
    """Orchestrators with the same secret take each other's URLs."""

    def __init__(self, secret: str, ttl: float) -> None:
        """``ttl`` is how long a URL is good for, in seconds. Raises ValueError."""
        if not 1 <= ttl < math.inf:
            raise ValueError(f"--url-ttl must be at least 1 second, not {ttl:g}")
        self._secret = secret.encode()
        self._ttl = ttl

    def query(self, video_id: str, variant: str) -> str:
        """What makes the URL of this variant's content a signed one."""
        expires = str(int(time.time() + self._ttl))
        return urlencode({"expires": expires, "signature": self._signature(video_id, variant, expires)})

    def check(self, query: Mapping[str, str], video_id: str, variant: str) -> None:
        """Raises ApiError: 401 for a signature that is not ours, 403 for one whose time is over."""
        expires, given = query.get("expires", ""), query.get("signature", "")
        same = hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._signature(video_id, variant, expires).encode()
        )
        if not same or not _EXPIRES.fullmatch(expires):
            message = "this URL's signature is not valid for this video, variant and time"
            raise ApiError(401, message, code="invalid_signature", param="signature")
        if int(expires) < time.time():
            message = "this URL has expired; GET the video again for a new one"
            raise ApiError(403, message, code="url_expired", param="expires")

    def _signature(self, video_id: str, variant: str, expires: str) -> str:
        signed = f"/v1/videos/{video_id}/content\n{variant}\n{expires}"
        return hmac.new(self._secret, signed.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def load_secret(path: Path | None, default: Path) -> str:
    """The secret of the file ``path``; else that of ``default``, which is made if it is not there.

    Raises OSError or ValueError that names the file.
    """
    if path is None:
        path = default
        try:
            write_token(path)
        except FileExistsError:
            pass
    return read_token(path)
