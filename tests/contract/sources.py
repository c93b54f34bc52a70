"""Names looked up in Python sources, without importing them: a vLLM for another platform, or of another version, cannot be.

Follows imports between the package's modules and the bases of classes. What a module makes at run time (lazy attributes, names
put in place by code) counts as there where the module's text holds the name as a word: better a name too many than a false alarm
on each release. Fails with a SyntaxError for sources that this Python cannot parse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A name's definition and the module that holds it. `node` is None where it is only known to be there."""

    node: ast.AST | None
    module: Module


class Module:
    """One file."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.is_package = file.name == "__init__.py"
        self.text = file.read_text(encoding="utf-8")

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """Those that run when it is imported, the bodies of `if`, `try` and `with` included."""
        return list(_unfolded(ast.parse(self.text).body))

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        above = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*above, *([node.module] if node.module else [])])


class Sources:
    """The sources of one version, below the folder that holds the package."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """A module by its dotted name; None where there is none."""
        if name not in self._modules:
            base = self._root.joinpath(*name.split("."))
            files = [file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]
            self._modules[name] = Module(name, files[0]) if files else None
        return self._modules[name]

    def find(self, module_name: str, name: str, depth: int = 0) -> Found | None:
        """What a dotted name inside a module stands for: `Scheduler.schedule`."""
        module = self.module(module_name)
        if module is None or depth > 10:
            return None
        first, _, rest = name.partition(".")
        found = self._top_level(module, first, depth)
        return found if found is None or not rest else self._member(found, rest)

    def parameters(self, found: Found) -> set[str] | None:
        """Names of a callable's parameters, a class's constructor; None where they cannot be told."""
        node = found.node
        if isinstance(node, ast.ClassDef):
            constructor = self._member(found, "__init__")
            return None if constructor is None else self.parameters(constructor)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        arguments = node.args
        return {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}

    def fields(self, found: Found) -> set[str] | None:
        """Names on a class: in its body and its bases', and what its constructors assign on self; None where it is no class."""
        if not isinstance(found.node, ast.ClassDef):
            return None
        names: set[str] = set()
        for node, _ in self._lineage(found):
            names |= {name for statement in node.body for name in _names_bound(statement)}
            constructors = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            names |= {part.attr for one in constructors for part in ast.walk(one) if isinstance(part, ast.Attribute)}
        return names

    def _member(self, found: Found, name: str) -> Found | None:
        if found.node is None:
            return found
        first, _, rest = name.partition(".")
        for node, module in self._lineage(found):
            for statement in _unfolded(node.body):
                if first in _names_bound(statement):
                    member = Found(statement, module)
                    return member if not rest else self._member(member, rest)
        return None

    def _lineage(self, found: Found) -> Iterator[tuple[ast.ClassDef, Module]]:
        """A class, then its bases as far as they are in these sources."""
        node, module = found
        if not isinstance(node, ast.ClassDef):
            return
        yield node, module
        for base in node.bases:
            if isinstance(base, ast.Name):
                parent = self._top_level(module, base.id, 0)
                if parent is not None and parent.node is not node:
                    yield from self._lineage(parent)

    def _top_level(self, module: Module, name: str, depth: int) -> Found | None:
        for statement in module.statements:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        origin = module.absolute(statement)
                        elsewhere = self.find(origin, alias.name, depth + 1)
                        if elsewhere is None and self.module(f"{origin}.{alias.name}") is None and self.module(origin) is not None:
                            return None
                        return elsewhere or Found(None, module)
            elif name in _names_bound(statement):
                return Found(statement, module)
        if self.module(f"{module.name}.{name}") is not None or f'"{name}"' in module.text:
            return Found(None, module)
        return None


def as_numbers(version: str) -> tuple[int, ...]:
    """A version's parts, by which versions are in order.

    >>> sorted(["0.33.0", "0.9.1"], key=as_numbers)
    ['0.9.1', '0.33.0']
    """
    return tuple(map(int, re.findall(r"\d+", version)))


def _unfolded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _unfolded(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _unfolded(handler.body)


def _names_bound(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Import(names=names):
            return {(alias.asname or alias.name).partition(".")[0] for alias in names}
        case _:
            return set()
