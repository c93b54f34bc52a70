"""The mutants of one source: cosmic-ray makes them, here those are left out that say nothing.

Of cosmic-ray's operators each arithmetic, bit and comparison operator keeps one or two replacements (OPERATORS): all eleven of an
arithmetic operator would mostly fail on types, and every such death would flatter the tests. Left out by place are `X | None` in
annotations, the bare `*` of a signature and the options of a decorator (frozen, slots). What does not compile, or compiles to
the same, is no mutant.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

_ARITHMETIC: Final = (
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul"),
    *("LShift_RShift", "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd"),
)
_COMPARISONS: Final = (
    *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
    *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
)
OPERATORS: Final = (
    *(f"ReplaceBinaryOperator_{change}" for change in _ARITHMETIC),
    *(f"ReplaceComparisonOperator_{change}" for change in _COMPARISONS),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("ExceptionReplacer", "NumberReplacer", "RemoveDecorator"),
)

Place = tuple[int, int]
"""Line from 1 on, column from 0 on."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: `before` and `after` are the changed lines, with single spaces, `code` is the whole mutated source."""

    operator: str
    line: int
    before: str
    after: str
    code: str


def mutants_of(source: str, only: Sequence[str] = ()) -> list[Mutant]:
    """Every mutant of `source`, in the definitions that `only` names (such as `Class.method`). Raises LookupError for a name that
    is not there.
    """
    tree = ast.parse(source)
    wanted, noise = list(_definitions(tree, only)), list(_noise(tree))
    nodes = list(ast_nodes(get_ast(source)))
    same = ast.dump(tree)
    found = []
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        places = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, place) in enumerate(places):
            if not any(first <= place[0] <= last for first, last in wanted) or _says_nothing(name, node, place, noise):
                continue
            try:
                code = mutate_code(source, operator, occurrence)
            except AttributeError:  # cosmic-ray 8.7 cannot replace a dotted name in a tuple of exceptions
                continue
            if code is not None and _differs(code, same):
                found.append(Mutant(name, place[0], *_changed_lines(source, code), code))
    return sorted(found, key=lambda mutant: mutant.line)


def has_definitions(source: str, only: Sequence[str]) -> bool:
    """Whether there is code to mutate in what `only` names. Raises LookupError for a name that is not there."""
    return bool(list(_definitions(ast.parse(source), only)))


def sampled(mutants: Sequence[Mutant], share: float, seed: int) -> list[Mutant]:
    """That share of them, at least one, drawn by `seed`, in their order."""
    drawn = random.Random(seed).sample(range(len(mutants)), max(round(share * len(mutants)), 1)) if mutants else []
    return [mutants[index] for index in sorted(drawn)]


def _definitions(tree: ast.Module, only: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last line of each definition that is named."""
    if not only:
        yield 1, 1 << 30
    for name in only:
        node: Any = tree
        for part in name.split("."):
            node = next((one for one in node.body if getattr(one, "name", None) == part), None)
            if node is None:
                raise LookupError(
                    f"{name}: no definition of this name; `only` of a target names classes and functions of its module"
                )
        yield min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno


@dataclass(frozen=True, slots=True)
class _Region:
    first: Place
    last: Place
    operators: str
    """Prefix of the operators that say nothing here."""

    @classmethod
    def of(cls, node: ast.expr, operators: str) -> _Region:
        return cls((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0), operators)


def _noise(tree: ast.Module) -> Iterator[_Region]:
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if annotation is not None:
            yield _Region.of(annotation, "ReplaceBinaryOperator_BitOr")
        for decorator in getattr(node, "decorator_list", ()):
            yield _Region.of(decorator, "ReplaceTrue")


def _says_nothing(name: str, node: Any, place: Place, noise: Sequence[_Region]) -> bool:
    is_bare_star = name.startswith("ReplaceBinaryOperator") and node.parent.type in {"parameters", "lambdef"}
    return is_bare_star or any(name.startswith(region.operators) and region.first <= place < region.last for region in noise)


def _differs(code: str, same: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "is" with a literal, and the like
            tree = ast.parse(code)
            compile(tree, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return ast.dump(tree) != same


def _changed_lines(source: str, code: str) -> tuple[str, str]:
    """The lines in which two sources differ, each side as one line."""
    old, new = source.split("\n"), code.split("\n")
    first = next(index for index in range(len(old)) if old[index : index + 1] != new[index : index + 1])
    same_after = 0
    while same_after < min(len(old), len(new)) - first and old[-1 - same_after] == new[-1 - same_after]:
        same_after += 1
    return tuple(" ".join(" ".join(lines[first : len(lines) - same_after]).split()) for lines in (old, new))  # type: ignore[return-value]
