"""`make docs`: the site is built without a warning, and a reader's browser asks nobody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from system.process import ROOT, environment

# Attributes that make a browser fetch something; links (<a href>) do not.
_LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
# Of <link>, these fetch; canonical, prev, next and the like do not.
_FETCHING = {"stylesheet", "preload", "modulepreload", "preconnect", "dns-prefetch", "icon"}


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and not _FETCHING & set(given.get("rel", "").split()):
            return
        if value := given.get(_LOADS.get(tag, ""), ""):
            self.found.append(value)
        if "url(" in given.get("style", ""):
            self.found += re.findall(r"url\(([^)]*)\)", given["style"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_every_page_of_the_navigation_is_built(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in re.findall(r"(\w[\w-]*)\.md$", text, re.MULTILINE):
        assert (site / f"{page}.html").is_file(), page
    assert yaml.safe_load(text)["theme"]["font"] is False


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """S11 for readers of the documentation: no font, script or picture of a CDN."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        parser = _Loads()
        parser.feed(page.read_text("utf-8"))
        assert parser.found, page
        foreign = [value for value in parser.found if re.match(r"(https?:)?//", value)]
        assert not foreign, f"{page.name}: {foreign}"
        # Material fetches Mermaid from a CDN where a page holds such a diagram.
        assert 'class="mermaid"' not in page.read_text("utf-8"), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text("utf-8")), style


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    """Also those to anchors; `strict` sees to the rest."""
    ids = {
        page.name: set(re.findall(r'id="([^"]+)"', page.read_text("utf-8")))
        for page in site.glob("*.html")
    }
    for page in site.glob("*.html"):
        if page.name == "404.html":
            continue
        for href in re.findall(r'<a[^>]* href="([^"]*)"', page.read_text("utf-8")):
            if re.match(r"[a-z]+:", href):
                continue
            file, _, anchor = href.partition("#")
            name = os.path.normpath(file) if file else page.name
            if name in (".", ".."):
                name = "index.html"
            assert (site / name).exists(), f"{page.name}: {href}"
            if anchor and name in ids:
                assert anchor in ids[name], f"{page.name}: {href}"
