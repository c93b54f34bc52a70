"""What runs in every engine step: the K of the step, its counters, the guard, and the life of the drafter."""
