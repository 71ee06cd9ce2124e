"""An S3 server (moto's) on loopback, and a door before it that can be shut."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import s3fs
from aiohttp import ClientSession, web

from deploy.ports import free_port
from transfer.remote_folder import RemoteFolder

KEY = "test"
START_SECONDS = 60.0

s3fs.S3FileSystem.retries = 2  # in this process it gives up sooner


class S3Server:
    """A process; what it holds ends with it. Everything is admitted that no bucket policy denies."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._buckets = 0

    def __enter__(self) -> S3Server:
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/moto-api/data.json", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert self._process.poll() is None and time.monotonic() < deadline, "moto does not start"
                time.sleep(0.05)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name="us-east-1",
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(30)

    def bucket(self) -> str:
        """The name of a new one."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    def names(self, bucket: str) -> set[str]:
        return {item["Key"] for item in self.client.list_objects_v2(Bucket=bucket).get("Contents", ())}

    def get(self, bucket: str, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def deny(self, bucket: str, *actions: str) -> None:
        """To everybody, ``s3:PutObject`` and the like; with none, everything is admitted again."""
        if not actions:
            self.client.delete_bucket_policy(Bucket=bucket)
            return
        resource = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statement = {"Effect": "Deny", "Principal": "*", "Action": list(actions), "Resource": resource}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


def options(url: str) -> dict[str, Any]:
    """What the driver is told; it gives up sooner than it would by itself."""
    config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 5, "read_timeout": 5}
    return {"endpoint_url": url, "key": KEY, "secret": KEY, "config_kwargs": config}


def folder(server: S3Server | Door, bucket: str) -> RemoteFolder:
    return RemoteFolder(f"s3://{bucket}/videos", options(server.url))


def options_file(path: Path, url: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(json.dumps(options(url)))
    return path


class Door:
    """Passes requests on to an S3 server, but for what a test wants to go wrong."""

    def __init__(self, server: S3Server, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.gate = asyncio.Event()  # until it is set, PUTs wait
        self.gate.set()
        self.waiting = 0  # PUTs at the gate
        self.away = False  # connections end without an answer
        self.full = False  # what would write is answered 507, as MinIO does it
        self.silent = False  # connections stay open, and nothing comes
        self.mute = False  # what writes is done, and never answered
        self.refused = 0  # requests, while it was away
        self._closing = asyncio.Event()
        self.written: list[str] = []  # paths of PUTs that the server has done
        self._server = server

    async def __aenter__(self) -> Door:
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closing.set()
        self.gate.set()
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if self.silent:
            await self._closing.wait()
        content = await request.read()
        if self.away:
            self.refused += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.full and request.method in ("PUT", "POST"):
            error = "<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum"
            return web.Response(status=507, text=f"{error} free drive threshold.</Message></Error>")
        if request.method == "PUT":
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        url = f"{self._server.url}{request.raw_path}"
        headers = {key: value for key, value in request.headers.items() if key != "Host"}
        async with self._session.request(request.method, url, headers=headers, data=content) as reply:
            body = await reply.read()
        if request.method == "PUT":
            self.written.append(request.path)
            if self.mute:
                await self._closing.wait()
        kept = {k: v for k, v in reply.headers.items() if k not in ("Transfer-Encoding", "Connection")}
        return web.Response(status=reply.status, headers=kept, body=body)
