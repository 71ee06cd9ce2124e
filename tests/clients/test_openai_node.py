"""OpenAI's npm SDK, unchanged; what it is asked to do is in node/sdk.test.mjs."""

from __future__ import annotations

import re
import subprocess

from tests.clients.environments import NODE, NODE_MODULES, need, need_command
from tests.clients.servers import Servers


def test_the_npm_sdk(system: Servers) -> None:
    command = [need_command("node"), "--test", "--test-reporter=tap", "sdk.test.mjs"]
    need(NODE_MODULES)
    result = subprocess.run(
        command, cwd=NODE, env=system.environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(re.findall(r"^# (\w+) (\d+)$", result.stdout, re.MULTILINE))
    assert int(counts["pass"]) >= 20, result.stdout
    assert counts["fail"] == counts["skipped"] == counts["cancelled"] == "0", result.stdout
