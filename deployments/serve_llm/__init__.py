"""ray.serve.llm as the host: its builder, ingress, routers and adapters serve, and Nightjar steers the engine inside.

    import_path: nightjar.deployments.serve_llm:build_openai_app     # was ray.serve.llm:build_openai_app

or, for single models of an application, `server_cls: nightjar.deployments.serve_llm:LLMServer`. ray[llm] 2.60 pins vLLM 0.29.0, and
that vLLM is steered on model runner V1. Fails open as everywhere: what cannot be steered serves as ray.serve.llm would serve it.
"""

from nightjar.deployments.serve_llm.server import LLMServer, build_openai_app

__all__ = ["LLMServer", "build_openai_app"]
