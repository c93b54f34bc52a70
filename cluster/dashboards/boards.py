"""The dashboards that there are."""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.one_replica import ONE_REPLICA
from nightjar.cluster.dashboards.overview import OVERVIEW

DASHBOARDS: Final = (OVERVIEW, ONE_REPLICA)
