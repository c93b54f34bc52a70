"""The room of load and evidence. It talks to a running system over HTTP only, with the records of `policy` and `cluster`."""
