"""Before an engine runs: launch.py is the way, resolved_facts.py whether it is steered, arguments.py what is added then, hooks.py
the check of vLLM, fallback.py the way out."""
