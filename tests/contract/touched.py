"""What we touch of vLLM: the start-up check's tables, by the feature that needs them, and every import in the product's sources."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.start.hooks import (
    BLOCK_DRAFT,
    DORMANT_DRAFT,
    DRAFT_OFFLOAD,
    DRAFT_ON_V2,
    EVERYWHERE,
    HOMES,
    KV_ONLY_HEAD,
    LOAD,
    ON_CPU,
    PLAIN_SERVER,
    RANKS,
    Hook,
)
from nightjar.deployments.engine.start.vllm_versions import V2_OBEYS_K_FROM
from tests.contract.sources import Found, Sources, as_numbers

ROOT: Final = Path(__file__).parents[2]
EVERY_ENGINE: Final = "every engine"
"""What an engine leans on that is served plainly, too."""
FEATURES: Final = {
    EVERY_ENGINE: LOAD,
    "steering": EVERYWHERE,
    "sleeping": DORMANT_DRAFT,
    "lending": DRAFT_OFFLOAD,
    "heads": KV_ONLY_HEAD,
    "drafts on V2": DRAFT_ON_V2,
    "ranks": RANKS,
    "blocks": BLOCK_DRAFT,
    "CPU engines": ON_CPU,
    "nightjar serve": PLAIN_SERVER,
}
SINCE: Final = {"heads": V2_OBEYS_K_FROM, "drafts on V2": V2_OBEYS_K_FROM, "blocks": V2_OBEYS_K_FROM}
"""Features that older versions do not need: every drafter of 0.29 and 0.31 is steered on model runner V1."""
FILES_OF: Final = {
    "heads": ("deployments/engine/worker/kv_only_head.py",),
    "drafts on V2": ("deployments/engine/worker/v2.py",),
}
IMPORTS: Final = "imports"
SOURCES: Final = ("deployments", "cluster", "loadtests", "policy", "tests/rig")


@dataclass(frozen=True, slots=True)
class Missing:
    """A name that a version lacks, and the feature that it costs there."""

    feature: str
    what: str


def needed(version: str) -> list[str]:
    """Features that this version (`0.32.0`) is to have.

    >>> "heads" in needed("0.29.0"), "heads" in needed("0.32.0")
    (False, True)
    """
    return [feature for feature in FEATURES if as_numbers(version)[:2] >= SINCE.get(feature, (0, 0))]


def missing(sources: Sources, features: Sequence[str] = tuple(FEATURES)) -> list[Missing]:
    """Everything that we touch for these features and these sources do not have."""
    of_hooks = [Missing(feature, what) for feature in features for hook in FEATURES[feature] for what in _problems(sources, hook)]
    of_names = [
        Missing(IMPORTS, f"{name} in none of {', '.join(homes)}") for name, homes in HOMES.items() if not _moved(sources, name)
    ]
    others = {file for feature, files in FILES_OF.items() if feature not in features for file in files}
    return of_hooks + of_names + [Missing(IMPORTS, what) for what in _imports(sources, ROOT, others)]


def _problems(sources: Sources, hook: Hook) -> list[str]:
    """As hooks.missing_hooks says it of the installed vLLM."""
    where = f"{hook.module}.{hook.name}" if hook.module else hook.name
    found = sources.find(hook.module, hook.name) if hook.module else _moved(sources, hook.name)
    if found is None:
        return [f"{where}: there is none"]
    problems = []
    parameters = sources.parameters(found) if hook.parameters else None
    if parameters is not None:
        problems += [f"{where}: takes no parameter {name!r}" for name in hook.parameters if name not in parameters]
    fields = sources.fields(found) if hook.fields else None
    if fields is not None:
        problems += [f"{where}: holds no {name!r}" for name in hook.fields if name not in fields]
    return problems


def _moved(sources: Sources, name: str) -> Found | None:
    return next((found for home in HOMES[name] if (found := sources.find(home, name)) is not None), None)


def _imports(sources: Sources, root: Path, left_out: Collection[str] = ()) -> Iterator[str]:
    """Imports of vllm, also those inside functions and for the type checker alone."""
    for file in sorted(file for room in SOURCES for file in (root / room).rglob("*.py")):
        if file.relative_to(root).as_posix() in left_out:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                for alias in node.names:
                    if sources.find(node.module or "", alias.name) is None:
                        yield f"{node.module}.{alias.name}, at {file.relative_to(root)}:{node.lineno}"
