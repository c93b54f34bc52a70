"""What we assume of the bodies of vLLM's functions, and which bodies were read: meaning moves under names that stay.

bodies.toml holds, for each function that our code leans on, one sentence that a person can check against the function's text, and
a digest of the text for each version in which somebody did. A digest is of the syntax tree: comments, docstrings and formatting
are left out. A version without digests of its own is held against the newest one that has them. Fails closed: a body that nobody
read is named with its sentence, however small the change is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher, unified_diff
from functools import cached_property
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.start.hooks import HOMES
from tests.contract.sources import Found, Sources, as_numbers

FILE: Final = Path(__file__).with_name("bodies.toml")
ABSENT: Final = "absent"
"""In place of a digest: the version has no such function, and that was seen to be right."""
_HEADER: Final = """\
# What we lean on inside vLLM's functions, and in which versions a person read that it is so. Written by `python -m tests.contract
# VERSION --accept ...`; the sentences are written by hand. A sentence holds for every version that has a digest below it.
"""
_DIGEST_LENGTH: Final = 16
_LEFT_OUT: Final = frozenset({"ctx", "kind", "type_comment"})


@dataclass(frozen=True, slots=True)
class Body:
    """A function or class of vLLM on whose inside we lean."""

    function: str
    """`module:Class.method`; a name of hooks.HOMES alone."""
    feature: str
    """Of touched.FEATURES: what goes wrong where the assumption does not hold, and in which versions it is needed."""
    ours: str
    """The file that leans on it."""
    assumption: str
    digests: Mapping[str, str]
    """By version: of the text that was read."""

    def newest_before(self, version: str) -> str:
        """The newest other version that was read and has it; empty where there is none."""
        others = [read for read, digest in self.digests.items() if read != version and digest != ABSENT]
        return max(others, key=as_numbers, default="")


@dataclass(frozen=True)
class Unread:
    """A body that is not the one that was read."""

    body: Body
    version: str
    read_version: str
    """What it is held against; empty where no version was read."""
    text: str | None
    """None where the version has no such function."""
    read_text: str | None

    @property
    def what(self) -> str:
        """In one line."""
        where = f"vLLM {self.version}, {self.body.feature}: {self.body.function}"
        if self.text is None:
            return f"{where} is gone"
        if self.read_text is None:
            return f"{where} was never read"
        changed, lines = self._changed_lines
        return f"{where} has another body than in {self.read_version}, {changed} of {lines} lines"

    @property
    def diff(self) -> list[str]:
        """Of the texts as they stand in the files, comments too."""
        old, new = (self.read_text or "").splitlines(), (self.text or "").splitlines()
        return list(unified_diff(old, new, self.read_version, self.version, lineterm=""))

    @cached_property
    def _changed_lines(self) -> tuple[int, int]:
        """How many lines of the statements differ, and how many there were; long statements are one line."""
        old, new = _statements(self.read_text or ""), _statements(self.text or "")
        steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        return sum(max(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal"), len(old)


def load(file: Path = FILE) -> list[Body]:
    """All that were written down. Raises what tomllib and a missing field raise."""
    return [Body(function, **fields) for function, fields in tomllib.loads(file.read_text(encoding="utf-8")).items()]


def save(bodies: Iterable[Body], file: Path = FILE) -> None:
    """Write them as they are read, in the order of features and names."""
    blocks = [_HEADER]
    for body in sorted(bodies, key=lambda each: (each.feature, each.function)):
        digests = ", ".join(f'"{version}" = "{body.digests[version]}"' for version in sorted(body.digests, key=as_numbers))
        fields = {"feature": body.feature, "ours": body.ours, "assumption": body.assumption}
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
        blocks.append("\n".join([f'["{body.function}"]', *lines, f"digests = {{ {digests} }}", ""]))
    file.write_text("\n".join(blocks), encoding="utf-8")


def unread(
    bodies: Sequence[Body], version: str, features: Sequence[str], sources: Sources, sources_of_version: Callable[[str], Sources]
) -> list[Unread]:
    """Those of `features` whose body in `sources`, of `version`, is not the one that was read.

    `sources_of_version` is asked for an older version's only where something changed.
    """
    found = []
    for body in bodies:
        if body.feature not in features:
            continue
        digest = digest_in(sources, body.function)
        read_version = body.newest_before(version)
        if digest == body.digests.get(version, body.digests.get(read_version)):
            continue
        read_text = _text(sources_of_version(read_version), body.function) if read_version else None
        found.append(Unread(body, version, read_version, _text(sources, body.function), read_text))
    return found


def accept(bodies: Sequence[Body], functions: Sequence[str], version: str, sources: Sources) -> list[Body]:
    """The same, with these functions' bodies in `sources` written down as read in `version`."""
    return [
        replace(body, digests={**body.digests, version: digest_in(sources, body.function)}) if body.function in functions else body
        for body in bodies
    ]


def digest_in(sources: Sources, function: str) -> str:
    """Of a function's meaning in a version's sources; ABSENT where it has none."""
    found = _found(sources, function)
    return ABSENT if found is None or found.node is None else digest(found.node)


def digest(node: ast.AST) -> str:
    """Equal for texts that differ in comments, docstrings and formatting alone, on every Python that parses them.

    >>> one, other = ast.parse("def f(x):\\n  'doc'\\n  return x+1  # why"), ast.parse("def f(x): return (x + 1)")
    >>> digest(one) == digest(other), digest(one) == digest(ast.parse("def f(x): return x + 2"))
    (True, False)
    """
    return hashlib.sha256(_tree(node).encode()).hexdigest()[:_DIGEST_LENGTH]


def _tree(value: object) -> str:
    """The syntax tree as text. Fields without a value are left out: newer Pythons have more of them."""
    if isinstance(value, ast.AST):
        fields = ((name, each) for name, each in ast.iter_fields(value) if name not in _LEFT_OUT)
        held = [f"{name}={_tree(each)}" for name, each in fields if each is not None and each != []]
        return f"{type(value).__name__}({', '.join(held)})"
    if isinstance(value, list):
        return f"[{', '.join(_tree(each) for each in value if not _is_text(each))}]"
    return repr(value)


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _statements(text: str) -> list[str]:
    # A method's text is indented, but for strings of several lines in it, so it is put into a block and not moved.
    tree = ast.parse(f"if True:\n{text}" if text.startswith(" ") else text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.unparse(tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree).splitlines()


def _text(sources: Sources, function: str) -> str | None:
    found = _found(sources, function)
    if found is None or not isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    first = min([found.node.lineno, *(decorator.lineno for decorator in found.node.decorator_list)])
    return "\n".join(found.module.text.splitlines()[first - 1 : found.node.end_lineno])


def _found(sources: Sources, function: str) -> Found | None:
    module, separator, name = function.partition(":")
    if separator:
        return sources.find(module, name)
    return next((found for home in HOMES[function] if (found := sources.find(home, function)) is not None), None)
