"""The load test's file, in whose first process a load process counts as lost as soon as Locust itself would say so."""

from __future__ import annotations

from locust import runners

from nightjar.loadtests.locustfile import *  # noqa: F403  (Locust finds user and shape among a file's names)

runners.HEARTBEAT_LIVENESS = 3
