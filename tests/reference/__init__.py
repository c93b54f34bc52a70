"""Reference pages written from code: `python -m tests.reference settings > docs/settings.md`; `make docs` writes them all.

settings      docs/settings.md, from the operator's settings
command_line  docs/cli.md, from the command's own parser
http_api      docs/api.md, from the API's OpenAPI document
metrics       docs/metrics.md, from what replicas and the policy export
markdown      tables

`figures` draws those of README and docs. A test compares each page with what its generator writes today.
"""
