"""What operators set by hand goes from a cluster to the one that takes its place.

A cluster that an upgrade makes has a store of its own, so a `nightjar mode off` would end with the cluster in which it was typed.
The policy before it writes overrides and freeze into what it answers at `GET /learned` (learned_file.About); a fleet that began
with nothing stored takes them, each time that `seed_from` is read, until it answers there itself. They win over new settings.
What is set in the new cluster wins over them. Replicas' own overrides and a canary end with their cluster.

Fails towards the settings: where no predecessor answers, where it is of a release that does not hand over, or where it is another
service's, the settings' mode holds, and `not_known` says so for `status`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from nightjar.policy.operator.freeze import Freeze
from nightjar.policy.operator.overrides import ModeOverride, live_overrides
from nightjar.policy.wire.record import MAX_NAMED, Reason, Record

HEED_FOR_S: Final = 7200.0
"""Since a fleet began: how long its predecessor's word is taken. Large models load for half an hour."""
SHOWN_FOR_S: Final = 86_400.0
"""How long `status` says that nothing is known of what was set by hand before, unless somebody sets something sooner."""
MAX_HELD_PLANS: Final = 256
"""Of a freeze that goes along, a kibibyte each: the file holds 4 MiB. Groups beyond run off until it ends."""
FREEZE: Final = ("freeze", "")
"""A freeze among what an operator said; overrides go by scope and name."""

Heard = Literal["nothing", "predecessor", "older release", "another service"]

_CLUSTER_NAME = re.compile(r"(?P<service>.+)-[bcdfghjklmnpqrstvwxz2456789]{5}")
"""Of a RayService's cluster: KubeRay v1.7.0, controllers/ray/utils/util.go, GenerateRayClusterName; apimachinery's rand.String."""


class ByHand(Record):
    """What is set by hand in a fleet. `service` is `service_of` its cluster; `canary` is the one that runs, in words."""

    service: Annotated[str, Field(max_length=512)] = ""
    overrides: Annotated[tuple[ModeOverride, ...], Field(max_length=MAX_NAMED)] = ()
    freeze: Freeze | None = None
    canary: Reason = ""

    def for_successor(self, place: str, now_s: float) -> ByHand:
        """What of it holds in the next cluster, marked with where it comes from. Replicas' names mean nothing there."""
        held = [override for override in live_overrides(self.overrides, now_s) if override.scope != "replica"]
        freeze = self.freeze if self.freeze is not None and self.freeze.is_live(now_s) else None
        return self.model_copy(
            update={
                "overrides": tuple(override.model_copy(update={"carried_from": place}) for override in held),
                "freeze": freeze.model_copy(update={"carried_from": place}) if freeze is not None else None,
            }
        )


class Beginning(Record):
    """A fleet that began with nothing stored, at `at_s` on the policy's clock.

    `heard` is what came of asking for what was set by hand before, and `fleet_id` is of the fleet that answered: a predecessor that
    itself begins anew in between, with nothing stored, knows nothing and is not heard. `said` is what operators have set here
    since, which wins.
    """

    at_s: float
    heard: Heard = "nothing"
    fleet_id: Annotated[str, Field(max_length=64)] = ""
    said: Annotated[tuple[tuple[str, str], ...], Field(max_length=MAX_NAMED + 1)] = ()

    def heeds(self, now_s: float) -> bool:
        """Whether a predecessor's word is still taken."""
        return self.heard in {"nothing", "predecessor"} and now_s < self.at_s + HEED_FOR_S

    def with_said(self, what: tuple[str, str]) -> Beginning:
        """With what an operator has just set here."""
        if what in self.said or len(self.said) > MAX_NAMED:
            return self
        return self.model_copy(update={"said": (*self.said, what)})

    def is_another(self, fleet_id: str) -> bool:
        """Whether the fleet that answers is not the one that was heard first."""
        return self.heard == "predecessor" and fleet_id != self.fleet_id

    def having_heard(self, found: ByHand | None, service: str, fleet_id: str) -> Beginning:
        """After a policy answered at `seed_from`; `found` is None of a release that does not hand over, `service` is one's own."""
        if found is None:
            heard: Heard = "older release"
        else:
            heard = "predecessor" if found.service == service else "another service"
        return self.model_copy(update={"heard": heard, "fleet_id": fleet_id})


def not_known(beginning: Beginning | None, service: str, now_s: float, *, asks_policy: bool) -> str:
    """Why nothing is known of what was set by hand before, for the first line of `status`; empty where something is, or there was
    nothing before.

    A cluster without KubeRay (no `service`) whose seed_from names no policy to ask follows none.

    >>> not_known(Beginning(at_s=0.0, heard="older release"), "", 60.0, asks_policy=True)
    'the policy before is of a release that does not hand it over'
    >>> not_known(Beginning(at_s=0.0), "", 60.0, asks_policy=False), not_known(None, "llm/chat", 60.0, asks_policy=True)
    ('', '')
    """
    if beginning is None or beginning.said or now_s >= beginning.at_s + SHOWN_FOR_S:
        return ""
    if beginning.heard == "older release":
        return "the policy before is of a release that does not hand it over"
    if beginning.heard == "another service":
        return "seed_from leads to the policy of another service"
    if beginning.heard == "predecessor" or not (service or asks_policy):
        return ""
    asked = "no policy answered at seed_from" if asks_policy else "seed_from names no policy to ask"
    return f"nothing was stored and {asked}: a first install, a lost head or a replaced cluster"


def service_of(environ: Mapping[str, str] = os.environ) -> str:
    """Namespace and name of the RayService that this cluster is of, of a RayCluster without one its own; empty without KubeRay.

    From what KubeRay sets in Ray's containers (v1.7.0, controllers/ray/common/pod.go, setContainerEnvVars).

    >>> service_of({"RAY_CLUSTER_NAMESPACE": "llm", "RAY_CLUSTER_NAME": "chat-x7k2p"}), service_of({})
    ('llm/chat', '')
    """
    name = environ.get("RAY_CLUSTER_NAME", "")
    if not name:
        return ""
    found = _CLUSTER_NAME.fullmatch(name)
    return f"{environ.get('RAY_CLUSTER_NAMESPACE', '')}/{found['service'] if found else name}"


def has_fault_tolerance(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the GCS of this cluster keeps its tables outside the head's process: in Redis, or in RocksDB on a volume.

    From what Ray reads (2.60, _private/node.py; KubeRay v1.7.0 sets both from gcsFaultToleranceOptions, common/pod.go).

    >>> has_fault_tolerance({"RAY_REDIS_ADDRESS": "redis:6379"}), has_fault_tolerance({"RAY_gcs_storage": "rocksdb"})
    (True, True)
    >>> has_fault_tolerance({})
    False
    """
    return bool(environ.get("RAY_REDIS_ADDRESS")) or environ.get("RAY_gcs_storage") == "rocksdb"
