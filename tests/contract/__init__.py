"""vLLM's names that we touch, held against the sources of every version that we say we work with: `make contract`.

sources    looks names up in a version's sources, which are parsed and never imported
wheels     puts a version's sources on this machine: from its wheel, unpacked once, nothing installed
touched    what we touch: the tables of deployments/engine/hooks.py, and every import of vllm in the product
__main__   the command: a table of versions and features, and what is missing
"""
