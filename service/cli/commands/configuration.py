"""`strata check` and `strata config`."""

from __future__ import annotations

from service.cli.options import ConfigOption, UrlOption
from service.cli.running import fail, run, settings_of
from service.config.shown import as_toml
from service.observability.logging import configure_logging

# Where to look when a part does not work.
_KEYS = {
    "store": "store.url",
    "index": "index.url",
    "embedding": "embedding.provider, embedding.path, embedding.base_url",
    "model": "model.base_url, model.api_key",
}


def check(config: ConfigOption = None, url: UrlOption = None) -> None:
    """Validate the configuration and reach every configured part."""
    settings = settings_of(config)
    configure_logging("error")
    from service.cli.clients.connect import connect

    async def work() -> None:
        async with connect(settings, url=url) as client:
            ready = await client.ready()
        bad = []
        for name, part in ready.items():
            if isinstance(part, dict):
                print(f"{name:<11} " + "  ".join(f"{k}={v}" for k, v in part.items()))
                if part["status"] not in ("ok", "off", "loading"):
                    bad.append(f"{name} (see {_KEYS.get(name, name)})")
        if bad:
            fail(f"not working: {', '.join(bad)}")
        print("everything works")

    run(work())


def show_config(config: ConfigOption = None) -> None:
    """Print the effective configuration as TOML, described, with secrets masked."""
    print(as_toml(settings_of(config)))
