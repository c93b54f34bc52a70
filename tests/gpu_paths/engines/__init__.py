"""Engines that `make test-gpu-paths` runs, each in a process of its own, and what those processes do."""
