"""The command line: serve, chat, check, config, import, export, token. `strata --help`."""

from __future__ import annotations

import typer

from service.cli.commands import configuration, conversations, keys, serving
from service.config.loading import forget_foreign_variables

# A crash shows no variables: a key could be one.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_show_locals=False
)
app.command()(serving.serve)
app.command()(conversations.chat)
app.command()(configuration.check)
app.command("config")(configuration.show_config)
app.command("import")(conversations.import_)
app.command()(conversations.export)
app.command()(keys.token)


def main() -> None:
    forget_foreign_variables()
    app()
