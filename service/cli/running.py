"""How a command runs and ends: what fails is said in one line, with an exit code that is not 0."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import typer

from memory.errors import ConfigError, StrataError
from service.config.loading import load_settings
from service.config.settings import Settings


def settings_of(path: Path | None, **given: dict[str, Any]) -> Settings:
    """The configuration, or the command's end."""
    try:
        return load_settings(path, **given)
    except ConfigError as error:
        fail(error)


def fail(error: Exception | str) -> NoReturn:
    print(f"strata: {error}", file=sys.stderr)
    raise typer.Exit(1)


def run(
    work: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run to the end in an event loop, which `loop` makes."""
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(work)
    except StrataError as error:
        fail(error)
    except OSError as error:
        fail(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
