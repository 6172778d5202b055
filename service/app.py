"""`create_app(settings)`: the one place that puts the HTTP service together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

import memory
from memory.config import ConfigSource
from service.auth.authenticators import make_auth
from service.config.settings import Settings
from service.http.problems import respond
from service.http.request import StrictRequest, provide_services
from service.middleware import ASGIApp, RequestMiddleware
from service.routes.health import Health, Scrape
from service.routes.memories import Memories
from service.routes.messages import Messages
from service.routes.schema import SchemaPage
from service.routes.sessions import Sessions
from service.routes.turns import Turns
from service.services import Services, open_services


def create_app(settings: Settings, services: Services | None = None) -> ASGIApp:
    """The ASGI application. Its lifespan opens and closes everything, unless `services` are
    given, which then belong to the caller."""

    config = ConfigSource(settings) if services is None else services.config

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        if services is not None:
            app.state.services = services
            yield
            return
        async with open_services(settings, config=config) as opened:
            app.state.services = opened
            yield

    auth = make_auth(config)
    app = Litestar(
        route_handlers=[Turns, Sessions, Messages, Memories, Health, Scrape],
        lifespan=[lifespan],
        dependencies={"user": Provide(auth.user), "services": Provide(provide_services)},
        exception_handlers={Exception: respond},
        logging_config=None,
        request_class=StrictRequest,
        request_max_body_size=settings.limits.body,
        openapi_config=OpenAPIConfig(
            title="Strata",
            version=memory.__version__,
            description="Layered memory for chat: window, summary and recall under one budget.",
            path="/schema",
            render_plugins=[SchemaPage(), JsonRenderPlugin()],
        ),
    )
    return RequestMiddleware(cast(ASGIApp, app), auth)
