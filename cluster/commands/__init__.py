"""The commands of this room, which `cluster/cli.py` lists. None of them imports Ray in the process that a person starts."""
