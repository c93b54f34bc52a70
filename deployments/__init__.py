"""The room that runs in every replica, under Ray Serve or without it: agent, and everything that touches vLLM. Beside it what reads
Serve files off line (`configuration/`)."""
