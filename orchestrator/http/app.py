"""The aiohttp application: every route of the HTTP API in one table."""

from __future__ import annotations

from aiohttp import web

from orchestrator.http import (
    content,
    events,
    health,
    images,
    models,
    openapi,
    peers,
    submission,
    sync,
    timeline,
    videos,
)
from orchestrator.http.auth import CONTENT, auth_middleware
from orchestrator.http.connections import Connections
from orchestrator.http.cors import add_cors_headers, cors_middleware
from orchestrator.http.errors import add_request_id, error_middleware
from orchestrator.http.options import HttpOptions
from orchestrator.http.protocol import Runner
from orchestrator.http.reference_urls import ReferenceFetcher
from orchestrator.http.service import OPTIONS, SERVICE, VideoService

# What OpenAI's API has beside our routes, and no model here can do.
UNSERVED = "edits|extensions|characters"
# None of the words that stand where an id could: a path with one of them answers only its own methods.
VIDEO = f"/v1/videos/{{id:(?!(?:sync|{UNSERVED})$)[^{{}}/]+}}"

SHUTDOWN_SECONDS = 5.0  # for requests that are under way when the server stops


def create_app(service: VideoService, options: HttpOptions) -> web.Application:
    middlewares = [error_middleware, cors_middleware, auth_middleware]
    app = web.Application(middlewares=middlewares, client_max_size=options.max_body_bytes)
    app[SERVICE] = service
    app[OPTIONS] = options
    app[submission.FETCHER] = ReferenceFetcher(options.reference_targets, options.reference_timeout)
    app[events.STREAMS] = events.Streams(options.max_streams)
    app.on_shutdown.append(app[events.STREAMS].close)
    app.on_response_prepare.append(add_request_id)
    app.on_response_prepare.append(add_cors_headers)
    app.add_routes(
        [
            web.post("/v1/videos", videos.create),
            web.post("/v1/videos/sync", sync.sync),
            web.post(f"/v1/videos/{{_:{UNSERVED}}}", videos.unserved),
            web.get("/v1/videos", videos.list_videos),
            web.get(VIDEO, videos.retrieve),
            web.delete(VIDEO, videos.delete),
            web.post("/v1/videos/{id}/remix", videos.remix),
            web.get(CONTENT, content.content),
            web.get("/v1/videos/{id}/timeline", timeline.timeline),
            web.get("/v1/videos/{id}/events", events.events),
            web.post("/v1/images/generations", images.generate),
            web.post("/v1/images/edits", images.edit),
            web.get("/v1/models", models.list_models),
            web.get("/v1/models/{model:.+}", models.retrieve_model),
            web.get("/v1/peers", peers.list_peers),
            web.post("/v1/peers", peers.announce),
            web.post("/v1/peers/drain", peers.drain),
            web.get("/health", health.health),
            web.get("/livez", health.livez),
            web.get("/readyz", health.readyz),
            web.get("/metrics", health.metrics),
            web.get("/openapi.json", openapi.openapi),
            web.get("/docs", openapi.docs),
        ]
    )
    return app


def create_runner(service: VideoService, options: HttpOptions) -> web.AppRunner:
    """The application with the settings of its connections, for a ``TCPSite``."""
    app = create_app(service, options)
    connections = Connections(options.header_timeout, lambda: runner.server)
    app.middlewares.append(connections.middleware)
    app.cleanup_ctx.append(connections.run)
    runner = Runner(
        app,
        keepalive_timeout=options.keepalive_timeout,
        send_timeout=options.send_timeout,
        lingering_time=options.linger_timeout,
        shutdown_timeout=SHUTDOWN_SECONDS,
        access_log=None,  # a client polls ten times a second: metrics count, a log would drown
    )
    return runner
