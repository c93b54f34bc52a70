"""The proof kit: what it chooses, runs, judges and tells."""
