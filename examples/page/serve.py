"""Serve the page and Strata from one origin, as browsers want it.

    python examples/page/serve.py     # http://127.0.0.1:8000

Strata sends no CORS headers, so a page must come from the same address: here by wrapping Strata's
own ASGI application, in production by a proxy before both.
"""

import argparse
from pathlib import Path

import uvicorn

from service.app import create_app
from service.config.loading import load_settings

HERE = Path(__file__).parent
FILES = {"/": ("index.html", b"text/html"), "/chat.js": ("chat.js", b"text/javascript")}
strata = create_app(load_settings())


async def app(scope, receive, send):
    if scope["type"] != "http" or scope["path"] not in FILES:
        await strata(scope, receive, send)
        return
    name, kind = FILES[scope["path"]]
    headers = [(b"content-type", kind + b"; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": (HERE / name).read_bytes()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, port=parser.parse_args().port)
