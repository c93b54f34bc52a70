"""Before an engine runs: launch.py is the way, arguments.py the decision, hooks.py the check of vLLM, fallback.py the way out."""
