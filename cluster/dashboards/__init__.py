"""What Prometheus and Grafana are given: rules and dashboards as code, and their way into Grafana.

`rules`, `overview` and `one_replica` hold them, `python -m helm.monitoring_files` writes them into the Helm chart, and
`nightjar dashboards push` brings the dashboards to a running Grafana (`grafana`).
"""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.one_replica import ONE_REPLICA
from nightjar.cluster.dashboards.overview import OVERVIEW

DASHBOARDS: Final = (OVERVIEW, ONE_REPLICA)
"""That there are."""
