"""One planner a file. A planner turns what is known of a group into a plan; the guard disposes."""
