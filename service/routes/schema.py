"""`/schema`: the OpenAPI document as a plain page, which loads nothing from another server."""

from __future__ import annotations

from html import escape
from typing import Any

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
code{{background:#8882;padding:.1em .3em;border-radius:3px}}dt{{margin-top:.8em}}</style>
<h1>{title} {version}</h1><p>{description}</p>
<p>The whole document: <a href="/schema/openapi.json">openapi.json</a></p><dl>{routes}</dl></html>
"""


class SchemaPage(OpenAPIRenderPlugin):
    """Lists the routes and links to the document."""

    def __init__(self) -> None:
        super().__init__(path="/", favicon="<link rel='icon' href='data:,'>")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        rows = []
        for path, item in openapi_schema["paths"].items():
            for method, operation in item.items():
                if isinstance(operation, dict):
                    rows.append(
                        f"<dt><code>{method.upper()} {escape(path)}</code>"
                        f"<dd>{escape(operation.get('summary', ''))}"
                    )
        info = openapi_schema["info"]
        return _PAGE.format(
            title=escape(info["title"]),
            version=escape(info["version"]),
            description=escape(info.get("description", "")),
            routes="".join(rows),
        ).encode()
