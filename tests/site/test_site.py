"""The site builds without a warning, has a page for every page, a dead link fails it, and it loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("sphinx")

DOCS: Final = Path(__file__).parents[2] / "docs"
DEAD_LINKS: Final = (
    "[x](nowhere.md)",
    "[x](#nowhere)",
    "[x](other.md#nowhere)",
    "[x](../nowhere.py)",
    "[x](../tests/nowhere/)",
    "![x](nowhere.svg)",
)
LOADED: Final = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc=["'](?P<src>[^"']+)"""
    r"""|<link\b(?![^>]*rel=["'](?:next|prev|search|index|canonical)["'])[^>]*?\shref=["'](?P<href>[^"']+)"""
    r"""|<object\b[^>]*?\sdata=["'](?P<data>[^"']+)"""
    r"""|(?:@import\s+|url\()["']?(?P<url>[^"')\s]+)""",
    re.IGNORECASE,
)
"""What a browser fetches by itself: of an HTML page, and of a style sheet."""


def built(docs: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """What `make site` runs."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", str(docs), str(to)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_docs_is_a_page_of_the_site_and_in_its_contents(site: Path) -> None:
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    contents = set(re.findall(r'<a class="reference internal" href="([^"#]+)">', (site / "index.html").read_text()))
    assert {str(page) for page in pages} - {"index.html"} <= contents


def test_a_link_into_the_repository_leads_to_a_page_that_shows_the_file(site: Path) -> None:
    assert 'href="repository/deployments/routes.py.html"' in (site / "security.html").read_text(encoding="utf-8")
    shown = (site / "repository/deployments/routes.py.html").read_text(encoding="utf-8")
    assert '<div class="highlight">' in shown


def two_pages(folder: Path, link: str) -> Path:
    """A site of two pages, the first of which holds a link."""
    docs = folder / "docs"
    docs.mkdir()
    for name in ("conf.py", "repository_files.py"):
        shutil.copy(DOCS / name, docs)
    (docs / "other.md").write_text("---\norphan: true\n---\n# Other\n")
    (docs / "index.md").write_text(f"# Front\n\n{link}\n")
    return docs


def test_a_link_that_leads_somewhere_does_not_fail_the_build(tmp_path: Path) -> None:
    assert built(two_pages(tmp_path, "[x](other.md#other)"), tmp_path / "site").returncode == 0


@pytest.mark.parametrize("link", DEAD_LINKS)
def test_a_dead_link_fails_the_build(link: str, tmp_path: Path) -> None:
    assert built(two_pages(tmp_path, link), tmp_path / "site").returncode != 0


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in {".html", ".css", ".svg"}]
    assert len(files) > 40
    fetched = {
        (path.name, address)
        for path in files
        for found in LOADED.finditer(path.read_text(encoding="utf-8"))
        for address in found.groups()
        if address
    }
    assert any(address.endswith(".svg") for _, address in fetched), "the figure is found"
    assert {(name, address) for name, address in fetched if re.match(r"(?:[a-z]+:)?//", address)} == set()


def test_what_counts_as_fetched_from_elsewhere() -> None:
    page = '<script async src="https://a/x.js"></script><link rel="stylesheet" href="//b/x.css"><a href="https://c">c</a>'
    sheet = "@import 'https://d/x.css'; src: url(https://e/x.woff2);"
    assert [next(filter(None, found.groups())) for found in LOADED.finditer(page + sheet)] == [
        "https://a/x.js",
        "//b/x.css",
        "https://d/x.css",
        "https://e/x.woff2",
    ]
