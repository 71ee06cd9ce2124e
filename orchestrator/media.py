"""The kinds of media files that decoders may report: their names, and what they are sent as."""

from __future__ import annotations

import re
from collections.abc import Mapping

CONTENT_TYPES: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}

FILE_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,240}}({'|'.join(map(re.escape, CONTENT_TYPES))})")
