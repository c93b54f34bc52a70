"""`nightjar assess`, without a Prometheus: tests/monitoring has one."""
