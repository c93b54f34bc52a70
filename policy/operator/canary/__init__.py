"""A share of the replicas tries another mode or setting against the rest, and goes back by itself where it loses."""
