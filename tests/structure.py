"""`make structure`: how large each room is, how many ideas it has, and how many words of docs were written by hand.

A line of code is a physical line that is neither blank nor part of a docstring (a string that stands as a statement). A module's
floor is one above the highest of those that it imports from its own room, so a reader who climbs them never meets a name that he
has not seen (tests import as they like). A numeric constant is a name in capitals, of a module, whose value has a number in it;
an error is a class whose name ends so. Modules, and the files of a folder, are counted without `__init__.py`. A word is what
stands between spaces, as `wc -w` counts. Fails closed: a circle of imports has no floors and raises CircleError with its modules.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("policy", "cluster", "deployments", "loadtests", "tests")


class CircleError(ValueError):
    """Modules that import each other, in a circle."""


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor in a docstring.

    >>> lines_of_code('"Why."\\n\\nlimit = 3\\n"Of what."\\n')
    1
    """
    strings = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    told = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sum(1 for number, line in enumerate(source.splitlines(), start=1) if line.strip() and number not in told)


def numeric_constants(source: str) -> list[str]:
    """Names of a module's numeric constants.

    >>> numeric_constants("A_S: Final = 3.0\\nNAMES = ('a',)\\nBY_KIND = {'x': 2}\\nrate = 3\\n")
    ['A_S', 'BY_KIND']
    """
    found = []
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if not isinstance(target, ast.Name) or not target.id.strip("_").isupper():
            continue
        held = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        if any(isinstance(value, int | float) and not isinstance(value, bool) for value in held):
            found.append(target.id)
    return found


def error_classes(source: str) -> list[str]:
    """Names of classes that end in Error.

    >>> error_classes("class CircleError(ValueError):\\n    ...\\nclass Room: ...\\n")
    ['CircleError']
    """
    classes = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return [name for name in classes if name.endswith("Error")]


def imported_packages(source: str) -> set[str]:
    """Packages that a module imports, anywhere in it, by the first part of their names.

    >>> sorted(imported_packages("import os.path\\ndef f():\\n    from unittest.mock import patch\\n"))
    ['os', 'unittest']
    """
    return {name.partition(".")[0] for name in _imported(ast.parse(source))}


def imports_within(room: Path) -> dict[str, set[str]]:
    """Every module of a room with those of the room that it imports, by dotted names from the room on."""
    sources = {_name(path, room): path.read_text(encoding="utf-8") for path in sorted(room.rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        inside = {name.removeprefix("nightjar.") for name in _imported(ast.parse(source))}
        most = {
            name for name in inside & sources.keys() if not any(other.startswith(f"{name}.") for other in inside & sources.keys())
        }
        found[module] = most - {module}
    return found


def floors(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each module, 1 for one that imports no other. Raises CircleError."""
    found: dict[str, int] = {}

    def climb(module: str, from_here: tuple[str, ...]) -> int:
        if module in from_here:
            raise CircleError(" <- ".join((*from_here[from_here.index(module) :], module)))
        if module not in found:
            found[module] = 1 + max((climb(other, (*from_here, module)) for other in imports[module]), default=0)
        return found[module]

    for module in imports:
        climb(module, ())
    return found


def pages_by_command(makefile: str) -> set[str]:
    """The pages of docs that `make docs` writes, by name.

    >>> sorted(pages_by_command("for page in cli api; do a > docs/$$page.md.new; done\\nb > docs/metrics.md.new"))
    ['api', 'cli', 'metrics']
    """
    names = re.findall(r"> docs/(\S+)\.md\.new", makefile)
    looped = [name for names in re.findall(r"for page in ([\w ]+);", makefile) for name in names.split()]
    return {name for name in names if "$" not in name} | set(looped)


def words_by_hand() -> int:
    """Words of docs/*.md without the pages that a command writes; results lie in a folder below, the README has its own limit."""
    left_out = pages_by_command((ROOT / "Makefile").read_text(encoding="utf-8"))
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem not in left_out]
    return sum(len(page.read_text(encoding="utf-8").split()) for page in pages)


def _imported(tree: ast.AST) -> set[str]:
    """Dotted names of all that a module imports; of `from a import b` both `a` and `a.b`."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _name(path: Path, room: Path) -> str:
    parts = path.relative_to(room.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main() -> None:
    """Print a line for each room, one for the product, and one for docs."""
    table = Table("room", "modules", "lines of code", "floors", "constants", "errors", "largest folder")
    sums = Counter[str]()
    for room in ROOMS:
        paths = [path for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__init__.py"]
        sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / room).rglob("*.py"))]
        count = Counter(
            modules=len(paths),
            lines=sum(map(lines_of_code, sources)),
            constants=sum(len(numeric_constants(source)) for source in sources),
            errors=sum(len(error_classes(source)) for source in sources),
        )
        highest = "-" if room == "tests" else str(max(floors(imports_within(ROOT / room)).values()))
        folder, files = Counter(path.parent for path in paths).most_common(1)[0]
        table.add_row(room, *_numbers(count, highest), f"{folder.relative_to(ROOT)} ({files})")
        if room != "tests":
            sums += count
    table.add_row("product", *_numbers(sums, ""), "")
    Console().print(table)
    Console().print(f"words of docs written by hand: {words_by_hand():,}")


def _numbers(count: Mapping[str, int], highest: str) -> tuple[str, ...]:
    return str(count["modules"]), f"{count['lines']:,}", highest, str(count["constants"]), str(count["errors"])


if __name__ == "__main__":
    main()
