"""What vLLM loads in every process of an engine on the rig (environment.py writes the entry points).

In a process without the rig's variables both do nothing.
"""

from __future__ import annotations

import os

from tests.rig.environment import ASYNC_VARIABLE, INTERPRET_VARIABLE


def platform() -> str | None:
    """vLLM's platform plug-in: the name of the rig's platform."""
    return "tests.rig.platform.RigPlatform" if ASYNC_VARIABLE in os.environ else None


def mend_interpreter() -> None:
    """vLLM's general plug-in: mend Triton's interpreter where it is in use."""
    if os.environ.get(INTERPRET_VARIABLE) == "1":
        from tests.rig.interpreter import mend_comparisons, mend_loop_indices

        mend_comparisons()
        mend_loop_indices()
