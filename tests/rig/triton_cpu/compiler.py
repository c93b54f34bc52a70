"""The compiler of a backend whose kernels are interpreted: asked to compile, it raises."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import BaseBackend


class InterpretedBackend(BaseBackend):
    """Compiles nothing."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        """Whether this is the backend of the target."""
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        """Names the backend in Triton's cache."""
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> object:
        """Raises NotImplementedError, as do the others: TRITON_INTERPRET is not set."""
        raise NotImplementedError("the rig's Triton backend compiles nothing: set TRITON_INTERPRET=1")

    def add_stages(self, stages: dict[str, Any], options: object, language: Any) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError("the rig's Triton backend compiles nothing: set TRITON_INTERPRET=1")

    def load_dialects(self, context: Any) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError("the rig's Triton backend compiles nothing: set TRITON_INTERPRET=1")

    def get_module_map(self) -> dict[str, Any]:
        """No modules to take functions from."""
        return {}
