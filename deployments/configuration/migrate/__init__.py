"""Nightjar into a configuration and out of it again, as edits of the user's own text: change.py plans them."""
