"""Engines, rivals and whole fleets in virtual time, around the very policy code that runs in production."""
