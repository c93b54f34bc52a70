"""`python -m tests.deployments.plain_vllm.nightjar_command`: the `nightjar` command of this checkout.

With a number in PROTOCOL_VARIABLE it speaks that protocol version, as another release would.
"""

from __future__ import annotations

import os
from typing import Final

from nightjar.policy.wire import record

PROTOCOL_VARIABLE: Final = "NIGHTJAR_TEST_PROTOCOL"
record.PROTOCOL_VERSION = int(os.environ.get(PROTOCOL_VARIABLE, record.PROTOCOL_VERSION))  # type: ignore[misc]

from nightjar.cluster.cli import main  # noqa: E402  (all others take the number from there as they are imported)

if __name__ == "__main__":  # an engine's processes import this module again
    main()
