"""`python -m tests.deployments.plain_vllm.nightjar_command`: the `nightjar` command of this checkout."""

from __future__ import annotations

from nightjar.cluster.cli import main

if __name__ == "__main__":  # an engine's processes import this module again
    main()
