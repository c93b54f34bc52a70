"""vLLM's names that we touch and bodies that we lean on, in the sources of every version that we say we work with: `make contract`.

sources    looks names up in a version's sources, which are parsed and never imported
wheels     puts a version's sources on this machine: from its wheel, unpacked once, nothing installed
bodies     what we assume of functions' bodies, and which bodies a person has read (bodies.toml)
touched    what we touch: the tables of deployments/engine/start/hooks.py, and every import of vllm in the product and the rig
__main__   the command: a table of versions and features, what is missing, and what changed
"""
