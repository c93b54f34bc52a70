"""`nightjar run`: the process that holds a Ray cluster of its own, its session, its port, and its lines of progress."""
