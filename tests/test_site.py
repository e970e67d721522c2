"""The documentation site: built strictly, complete, without a dead link, and readable without a network."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import ets
from ets import baselines, rewards, testing
from tests.documentation import ROOT

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("zensical", "mkdocstrings")),
    reason="the extra docs is not installed; `bash scripts/setup.sh docs`",
)

FETCHED = {"script", "img", "link", "iframe", "source", "video", "audio", "embed", "object"}
"""The elements whose addresses a browser asks for by itself."""


@dataclass
class Page(HTMLParser):
    """What a built page holds: its anchors, and the addresses that its elements name."""

    anchors: set[str] = field(default_factory=set)
    addresses: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.addresses += [(tag, given[name]) for name in ("href", "src", "data") if name in given]


@dataclass(frozen=True)
class Site:
    folder: Path
    said: str
    pages: dict[str, Page] = field(repr=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Built in a folder of its own, as `scripts/docs.sh` builds it."""
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "ets").symlink_to(ROOT / "ets", target_is_directory=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return Site(folder / "site", done.stdout + done.stderr, dict(parsed(folder / "site")))


def parsed(folder: Path) -> Iterator[tuple[str, Page]]:
    """Each page by its path. The one for errors is left out: a server shows it at any address."""
    for path in sorted(folder.rglob("*.html")):
        if path.name != "404.html":
            page = Page()
            page.feed(path.read_text(encoding="utf-8"))
            yield str(path.relative_to(folder)), page


def navigation() -> Iterator[tuple[str, str]]:
    """The title and the built page of every entry, those of sections included."""
    entries = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    while entries:
        ((title, value),) = entries.pop(0).items()
        if isinstance(value, list):
            entries = value + entries
        else:
            yield title, built(value)


def built(page: str) -> str:
    return page.removesuffix(".md") + ".html"


def is_elsewhere(address: str) -> bool:
    return re.match(r"(https?:)?//|mailto:", address) is not None


def test_the_build_finds_nothing_to_warn_of(site: Site) -> None:
    assert "No issues found" in site.said and "warning" not in site.said.lower()


def test_the_navigation_leads_to_every_page_there_is(site: Site) -> None:
    """But for the tables of single machines, which the page of the benchmarks leads to."""
    named = [page for _, page in navigation()]
    assert len(named) == len(set(named))
    benchmarks = {f"benchmarks/{address}" for _, address in site.pages["benchmarks/index.html"].addresses}
    assert set(named) <= set(site.pages) <= set(named) | benchmarks
    assert set(site.pages) == {built(str(path.relative_to(ROOT / "docs"))) for path in (ROOT / "docs").rglob("*.md")}


def test_the_sidebar_names_every_page_by_its_entry(site: Site) -> None:
    """With `navigation.indexes` the benchmarks' page would stand for its section, and have no name there."""
    text = (site.folder / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="(?:\./)?([^"]+)" class="md-nav__link[^>]*>(.*?)</a>', text, flags=re.DOTALL)
    shown = {(" ".join(unescape(re.sub("<[^>]+>", "", label)).split()), address) for address, label in links}
    assert [entry for entry in navigation() if entry not in shown] == []


def test_every_link_leads_somewhere(site: Site) -> None:
    dead = [(name, address) for name, page in site.pages.items() for address in dead_links(site, name, page)]
    assert dead == []


def test_every_picture_stands_on_a_page(site: Site) -> None:
    images = {
        (os.path.dirname(name), a) for name, page in site.pages.items() for tag, a in page.addresses if tag == "img"
    }
    shown = {os.path.normpath(os.path.join(folder, unquote(address))) for folder, address in images}
    assert {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.png")} <= shown


def dead_links(site: Site, name: str, page: Page) -> Iterator[str]:
    """The addresses of a page that no file of the site has, or no anchor of the page that they name."""
    for _, address in page.addresses:
        if is_elsewhere(address):
            continue
        path, _, anchor = unquote(address).partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        there = not target.startswith("..") and (site.folder / target).is_file()
        if not there or (anchor and target in site.pages and anchor not in site.pages[target].anchors):
            yield address


def test_no_page_asks_another_host_for_anything(site: Site) -> None:
    fetched = [address for page in site.pages.values() for tag, address in page.addresses if tag in FETCHED]
    assert fetched and not [address for address in fetched if is_elsewhere(address)]
    styles = [path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css")]
    assert styles and not [found for style in styles for found in re.findall(r"url\([\"']?(?:https?:)?//", style)]


@pytest.mark.parametrize("name", [name for name in ets.__all__ if name != "__version__"])
def test_every_public_name_stands_in_the_reference_with_what_it_is(site: Site, name: str) -> None:
    assert f"ets.{name}" in reference(site)
    said = inspect.getdoc(getattr(ets, name))
    assert said and not said.startswith(f"{name}(")  # what a dataclass without a docstring would have


@pytest.mark.parametrize("module", [rewards, baselines, testing], ids=lambda module: module.__name__)
def test_every_name_of_a_public_module_stands_there(site: Site, module: Any) -> None:
    """A function named like its own file stands under the file's name."""
    known = reference(site)
    names = {name: {f"{module.__name__}.{name}", f"{module.__name__}.{name}.{name}"} for name in module.__all__}
    assert [name for name, places in names.items() if not places & known] == []


def reference(site: Site) -> set[str]:
    """The anchors of the reference."""
    return set().union(*(page.anchors for name, page in site.pages.items() if name.startswith("api/")))
