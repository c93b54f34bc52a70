"""What Prometheus and Grafana are given: rules and dashboards as code, and their way into Grafana.

`rules`, `overview` and `one_replica` hold them, and `without_ray` makes of them those of plain vLLM servers. `python -m
helm.monitoring_files` writes them into files, `nightjar dashboards push` brings the dashboards to a running Grafana (`grafana`).
"""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.one_replica import ONE_REPLICA
from nightjar.cluster.dashboards.overview import OVERVIEW

DASHBOARDS: Final = (OVERVIEW, ONE_REPLICA)
"""That there are."""
