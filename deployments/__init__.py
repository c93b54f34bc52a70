"""The room that runs in every replica: the Serve deployment, its agent and everything that touches vLLM."""
