"""Where the release before had the replica's class, which Serve keeps by that name: for one release.

Without it no replica would start between a change of the code on disk and the next `serve deploy` (docs/upgrading.md).
"""

from __future__ import annotations

from nightjar.deployments.app import LLMReplica, ModelToServe

__all__ = ["LLMReplica", "ModelToServe"]
