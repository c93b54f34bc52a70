"""Links from a page to a file or folder of the repository: the site gets a page that shows it, so that they work in both places.

A link to what is not there is a warning, and so fails the build. Flowcharts in Mermaid's language, which others draw with a script,
are drawn as the site is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from tests.reference.figures.flowchart import draw

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = "repository"
LANGUAGES: Final = {".py": "python", ".md": "markdown", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}
MOST_BYTES: Final = 400_000

logger = logging.getLogger(__name__)


class RepositoryLinks(SphinxTransform):
    """Leads links out of docs to a page of the site."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Look at every link that MyST takes for a file to download, or finds nothing for."""
        page = Path(self.env.doc2path(self.env.docname))
        for node in list(self.document.findall(addnodes.download_reference)):
            self._lead(node, page.parent / node["reftarget"])
        for node in list(self.document.findall(addnodes.pending_xref)):
            target = str(node["reftarget"])
            if node.get("refdomain") == "doc" and Path(target).is_absolute():  # Markdown beside docs, without its ending
                self._lead(node, Path(f"{target}.md"))
            elif target.startswith("../"):
                self._lead(node, page.parent / target.partition("#")[0])
        for block in list(self.document.findall(nodes.literal_block)):
            if block.get("language") == "mermaid":
                self._draw(block)

    def _draw(self, block: nodes.literal_block) -> None:
        try:
            block.replace_self(nodes.raw("", draw(block.astext()), format="html"))
        except ValueError as error:
            logger.warning("flowchart: %s", error, location=block)

    def _lead(self, node: nodes.Element, target: Path) -> None:
        path = target.resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            logger.warning("%s is not in the repository", target, location=node)
            return
        name = path.relative_to(ROOT).as_posix()
        linked: set[str] = self.env.__dict__.setdefault("repository_files", set())
        linked.add(name)
        uri = self.app.builder.get_relative_uri(self.env.docname, f"{FOLDER}/{name}")
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked."""
    for name in sorted(app.env.__dict__.get("repository_files", ())):
        body = f"<h1>{escape(name)}</h1>\n{_shown(app, ROOT / name)}"
        yield f"{FOLDER}/{name}", {"title": name, "body": body, "parents": []}, "page.html"


def _shown(app: Sphinx, path: Path) -> str:
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir() if one.name[0] not in "._")
        return "<ul>" + "".join(f"<li>{escape(name)}</li>" for name in names) + "</ul>"
    if path.stat().st_size > MOST_BYTES:
        return f"<p>{path.stat().st_size} bytes: look at it in the repository.</p>"
    highlighter = app.builder.highlighter
    return str(highlighter.highlight_block(path.read_text(encoding="utf-8"), LANGUAGES.get(path.suffix, "text"), force=True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_transform(RepositoryLinks)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False}
