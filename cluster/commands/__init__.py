"""The commands of this room: one file each, mounted by `nightjar.cluster.cli`. None of them imports Ray before it is run."""
