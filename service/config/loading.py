"""Where the settings come from: a TOML file, overridden by `STRATA_<GROUP>__<KEY>` variables.

Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsConfigDict, SettingsError

from memory.errors import ConfigError
from service.config.settings import PREFIX, Settings

DEFAULT_FILE = Path("strata.toml")


def load_settings(path: Path | None = None, **given: Any) -> Settings:
    """Read, merge and validate; `given` are groups whose keys go before all others. Raises
    ConfigError naming the key and the fix."""
    path = config_path(path)
    if path is not None:
        try:
            tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), f"cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(str(path), f"is not TOML: {error}") from error
    _check_variables()
    # pydantic-settings takes the file's path from the class alone.
    chosen: type[Settings] = type(
        "Settings",
        (Settings,),
        {
            "model_config": SettingsConfigDict(**{**Settings.model_config, "toml_file": path}),
            "__module__": __name__,
        },
    )
    try:
        settings = chosen()  # what is overridden must be right too
        return chosen(**given) if given else settings
    except ValidationError as error:
        raise _invalid(error) from None
    except SettingsError as error:
        raise _not_json(error) from None


def config_path(given: Path | None) -> Path | None:
    """`given`, else STRATA_CONFIG, else ./strata.toml if it is there."""
    if given is not None:
        return given
    if named := os.environ.get("STRATA_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def forget_foreign_variables() -> None:
    """Of the OPENAI_* variables only the key is read; the SDK would also take a proxy, an
    organisation, headers and a log level (which logs whole requests) from there. LangChain's
    tracing, which sends every prompt away, stays off."""
    for name in list(os.environ):
        if name.startswith("OPENAI_") and name != "OPENAI_API_KEY":
            del os.environ[name]
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        os.environ[name] = "false"


def _invalid(error: ValidationError) -> ConfigError:
    """The first fault, by its dotted key; an unknown key gets the nearest known one. Values are
    never shown."""
    detail = error.errors(include_url=False, include_input=False)[0]
    place = detail["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    key = key or "configuration"
    if detail["type"] == "extra_forbidden":
        known = _model_at([part for part in place[:-1] if isinstance(part, str)])
        return ConfigError(key, "unknown key", _nearest(str(place[-1]), known))
    return ConfigError(key, detail["msg"].removeprefix("Value error, "))


def _model_at(parts: Sequence[str]) -> type[BaseModel]:
    """The model of the table at this path, as far as the path is known."""
    model: type[BaseModel] = Settings
    for part in parts:
        field = model.model_fields.get(part)
        found = as_model(field.annotation) if field else None
        if found is None:
            break
        model = found
    return model


def as_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(as_model, get_args(annotation))), None)


def _nearest(name: str, model: type[BaseModel]) -> str:
    """A hint at the field whose name is most like `name`."""
    near = difflib.get_close_matches(name.lower(), model.model_fields, n=1, cutoff=0.0)
    return f"the nearest known one is {near[0]!r}" if near else ""


def _check_variables() -> None:
    """pydantic-settings overlooks variables whose group it does not know."""
    for name in os.environ:
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        group = name[len(PREFIX) :].split("__")[0].lower()
        if group not in Settings.model_fields:
            raise ConfigError(name, f"unknown group {group!r}", _nearest(group, Settings))


def group_in(error: SettingsError) -> str:
    """The group whose variable is not JSON; empty when the error names none. pydantic-settings
    gives it in the text of its message only: tests/unit/service/config/test_loading.py fails
    when that text changes."""
    found = re.search(r'field "(\w+)"', str(error))
    return found[1] if found else ""


def _not_json(error: SettingsError) -> ConfigError:
    """Names the variable; its value is not shown."""
    group = group_in(error)
    for name, value in os.environ.items():
        if name.upper().startswith(f"{PREFIX}{group.upper()}") and not _is_json(name, value):
            return ConfigError(name, "is not JSON", "lists and tables are JSON")
    return ConfigError(group or "configuration", "a variable is not JSON")


def _is_json(name: str, value: str) -> bool:
    """Whether it is, or need not be because a text or a number is expected."""
    group, _, key = name.removeprefix(PREFIX).lower().partition("__")
    field = _model_at([group]).model_fields.get(key)
    if field is not None and get_origin(field.annotation) is not tuple:
        return True
    try:
        json.loads(value)
    except ValueError:
        return False
    return True
