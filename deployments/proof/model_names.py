"""Folders of the rig's models, for those who name them and do not make them (tiny_models.py, which needs torch)."""

from __future__ import annotations

from typing import Final

TARGET: Final = "target"
SLIDING: Final = "sliding"
DRAFT: Final = "draft"
EAGLE: Final = "eagle"
EAGLE3: Final = "eagle3"
MIMO: Final = "mimo"
DFLASH: Final = "dflash"
DSPARK: Final = "dspark"
ADAPTER: Final = "adapter"
ADAPTER_RANK: Final = 8
