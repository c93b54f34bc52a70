"""Rules and dashboards against a real Prometheus that scrapes a real running system: `make monitoring`."""
