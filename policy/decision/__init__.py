"""One decision of the whole fleet: each group for itself, then joined."""
