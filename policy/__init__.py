"""The room that decides: pure functions and records, no Ray, no vLLM, no clock of its own."""
