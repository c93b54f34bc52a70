"""Experiments of `make bench-policy` alone."""
