"""Nightjar: vLLM on Ray Serve, its speculation decided for the whole cluster.

In a checkout each room is a relative link to the folder beside this package. Archives that lose links (a zip that
Ray unpacks as `working_dir`) still import: the folder above is then searched for the rooms.
"""

from pathlib import Path

if not (Path(__file__).parent / "policy").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
