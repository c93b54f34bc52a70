"""The commands of this room, one file each, gathered in `room`. None of them imports Ray in the process that a person starts."""
