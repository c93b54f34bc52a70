"""Docs as a site: `make site` builds it and runs these tests."""
