"""What crosses a process or a file boundary: reports up, settings down, what operators set and what they are shown."""
