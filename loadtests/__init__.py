"""The room of load and evidence. It reads `policy` and talks to a running system over HTTP only."""
