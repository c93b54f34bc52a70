"""The policy at the size of a fleet, on coarse engines: `make bench-scale`, `bench-shards` and `bench-health`; `status_times`."""
