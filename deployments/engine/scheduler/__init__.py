"""What runs in the engine core. vLLM's calls come in at steered.py and control.py; step_loop.py is one step's way through the rest."""
