"""What runs in the engine core: vLLM calls steered.py and control.py; step_loop.py is one step's way through the rest."""
