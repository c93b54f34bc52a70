"""Metrics as tables, and the policy's own."""
