"""Keeps the Prometheus rules and Grafana dashboards of the chart, and the rules of plain vLLM servers; cluster/dashboards has them.

`python -m helm.monitoring_files` writes them, `--check` fails where they are out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.panels import Dashboard, dashboard_text
from nightjar.cluster.dashboards.rules import rule_file
from nightjar.cluster.dashboards.without_ray import plain_rule_file

FOLDER: Final = Path(__file__).parent
OF_CHART: Final = Path("nightjar/files")
OF_PLAIN_VLLM: Final = Path("plain-vllm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the files; the exit code."""
    parser = argparse.ArgumentParser(description="Writes the chart's Prometheus rules and Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is out of date")
    options = parser.parse_args(arguments)
    stale = stale_files(FOLDER)
    for path, text in stale.items():
        if options.check:
            sys.stderr.write(f"{path} is out of date: python -m helm.monitoring_files\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if stale and options.check else 0


def stale_files(folder: Path) -> dict[Path, str]:
    """What must be written so that `folder` holds what the code says."""
    return {
        path: text for path, text in generated(folder).items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def generated(folder: Path) -> dict[Path, str]:
    """Every file and its text."""
    chart = folder / OF_CHART
    dashboards = {chart / "dashboards" / _file_name(dashboard): dashboard_text(dashboard) for dashboard in DASHBOARDS}
    rules = {chart / "rules" / "nightjar.yaml": rule_file(), folder / OF_PLAIN_VLLM / "rules.yaml": plain_rule_file()}
    return rules | dashboards


def _file_name(dashboard: Dashboard) -> str:
    """Without the product's name: the chart puts the release's before it."""
    return f"{dashboard.uid.removeprefix('nightjar-')}.json"


if __name__ == "__main__":
    sys.exit(main())
