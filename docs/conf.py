"""How docs becomes a site: `make site`. Warnings are errors there, so a link that leads nowhere fails the build."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Nightjar"
html_title = "Nightjar"
extensions = ["myst_parser", "repository_files"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 4
myst_links_external_new_tab = False
html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"
