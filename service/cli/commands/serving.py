"""`strata serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.options import ConfigOption
from service.cli.running import run, settings_of
from service.observability.logging import configure_logging


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="server.host")] = None,
    port: Annotated[int | None, typer.Option(help="server.port; 0 takes a free one")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve over HTTP. Works without any configuration."""
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings_of(config, server=given)
    configure_logging(settings.server.log_level)
    if settings.server.workers > 1 and worker is None:
        from service.process.workers import Workers

        run(Workers(settings, config=config).run())
        return
    from service.process.server import new_event_loop
    from service.process.server import serve as serve_
    from service.process.workers import Parent

    run(serve_(settings, parent=Parent(worker) if worker else None), new_event_loop)
