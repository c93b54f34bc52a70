"""Imports what needs vLLM's model loaders once, before any test: what its dependencies deprecate at import is not ours to mend."""

import importlib
import importlib.util
import warnings

if importlib.util.find_spec("vllm"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("nightjar.deployments.engine.memory.cuda")
