"""Why a call to a peer failed, in words for operators."""

from __future__ import annotations

import re

import grpc

from orchestrator.validation import one_line

# What gRPC says of a connection that was made and then given up, and what it means here.
_TLS = (
    (re.compile(r"Hostname Verification"), "its certificate is for another host than its URL's"),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED"), "its certificate is not signed by our --tls-ca"),
    (re.compile(r"WRONG_VERSION_NUMBER"), "it does not speak TLS"),
    (re.compile(r"[Hh]andshake"), "the TLS handshake failed"),
    (re.compile(r"failed to connect.*Socket closed"), "it hangs up: it may want TLS, or another certificate"),
)


def reason(error: grpc.aio.AioRpcError) -> str:
    """One line."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return one_line(error.details() or error.code().name)
    return refusal(error) or "not reachable"  # the details are a paragraph of gRPC's innards


def refusal(error: grpc.aio.AioRpcError) -> str:
    """Why this peer and we do not fit together; nothing if it is just not there."""
    details = error.details() or ""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return f"it does not accept our token: {one_line(details)}"
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return one_line(details)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return next((meaning for pattern, meaning in _TLS if pattern.search(details)), "")
    return ""
