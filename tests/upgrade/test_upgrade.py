"""An upgrade as KubeRay makes it: a second cluster beside the first, which takes over what the first has learned, what an operator
sets by hand meanwhile, and its traffic.

Two Ray clusters of one machine, each with Serve, the policy's application, the policy actor and two replicas; only the engines are
simulated, and a forwarder stands where Kubernetes has a service. Requests go on all the time. What is looked at afterwards is what
users saw, what went through the forwarder, and the policies' journals, which say when who decided what. One run serves all tests.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

pytest.importorskip("ray")
from nightjar.cluster.local.session import session_members
from nightjar.cluster.storage.journal import FILE_NAME, JournalEntry, read_journal
from nightjar.cluster.storage.learned_file import LearnedFile, parse_learned_file
from nightjar.loadtests.simulation.campaign.measures import WITHIN
from nightjar.loadtests.simulation.campaign.scenes import nominal_of
from nightjar.policy.evidence.cells import MEASURED_SHARE, Cell
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import Settings, Table
from nightjar.policy.wire.status import FleetStatus
from tests.cluster.nightjar_run import Run
from tests.ports import free_port
from tests.upgrade.crowd import Crowd
from tests.upgrade.forwarder import Forwarder
from tests.upgrade.served_engine import CLUSTER_VARIABLE, PROFILE

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.filterwarnings("ignore")]

NOMINAL = nominal_of(PROFILE)
READ_TOKEN: Final = "to-read"
TOKEN: Final = "to-write"
RANDOM_PARTS: Final = {"old": "x7k2p", "new": "b4n5d"}
"""Of the clusters' names, as KubeRay draws them."""
USERS: Final = 12
ROWS: Final = USERS // 2
"""About as many requests in each of two engines."""
TOKENS: Final = 400
FIRST_MINUTE_S: Final = 60.0
LEAST_ANSWERS: Final = 200
"""Of the first cluster, before the second starts: some 80,000 tokens to learn from."""
LEAST_AFTERWARDS: Final = 50
"""Of the second in its first minute: 400 where nothing else runs."""
PATIENCE_S: Final = 300.0
"""Until whatever is waited for counts as never coming, on a machine that others use as well."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What is looked at. In seconds since the epoch the service turned to the new cluster at `moved_s`, and the old was gone at
    `over_s`.
    """

    crowd: Crowd
    moved_s: float
    over_s: float
    asked: tuple[tuple[int, bytes], ...]
    ports: dict[str, int]
    first_status: FleetStatus
    moved_status: FleetStatus
    last_status: FleetStatus
    last_learned: LearnedFile
    journals: dict[str, tuple[JournalEntry, ...]]
    left_over: tuple[int, ...]

    @property
    def seed(self) -> LearnedFile:
        """What the new cluster read of the old: of all that the old answered, itself among those who asked, what the new took."""
        (cause,) = self.seeded("new")
        answers = [answer for port, answer in self.asked if port == self.ports["old"] and b" 200 " in answer[:16]]
        files = [parse_learned_file(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
        return next(file for file in files if cause.endswith(file.in_words()))

    def seeded(self, cluster: str, before_s: float = math.inf) -> list[str]:
        """What the policy's journal says of evidence that it took from elsewhere before a time."""
        causes = [cause for entry in self.journals[cluster] if entry.time_s < before_s for cause in entry.causes]
        return [cause for cause in causes if cause.startswith("seeded")]

    @property
    def known(self) -> frozenset[Cell]:
        """Every cell in it that counts as measured."""
        (group,) = self.seed.groups
        least_steps = MEASURED_SHARE * OperatorSettings().calibration_clean_steps
        return frozenset(cell.cell for cell in group.cells if cell.steps >= least_steps)

    def steered(self, cluster: str) -> list[tuple[float, str, Settings]]:
        """Settings in mode auto that a policy decided: when, for which replica, and what."""
        return [
            (entry.time_s, name, issued.settings)
            for entry in self.journals[cluster]
            for name, issued in sorted(entry.decided.items())
            if issued.settings.mode.kind == "auto"
        ]


@pytest.fixture(scope="module")
def upgrade() -> Iterator[Upgrade]:
    """Both clusters are gone before the first test looks at what happened."""
    folder = Path(tempfile.mkdtemp(prefix="nj-up-", dir="/tmp"))
    try:
        yield run_upgrade(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """One of the two, as a release of the chart would make it: `seed_from` names the service, which has one name for both."""

    def __init__(self, name: str, folder: Path, service_url: str) -> None:
        self.port = free_port()
        self.journal = folder / name / "journal"
        self.journal.mkdir(parents=True)
        settings = {"mode": "auto", "seed_from": f"{service_url}/nightjar/learned"}
        policy = [{"name": "Policy", "user_config": settings}]
        policy_app = {"name": "nightjar", "import_path": "nightjar.cluster.policy_app:build", "route_prefix": "/nightjar"}
        model_app = {"name": "chat", "import_path": "tests.upgrade.served_engine:build", "route_prefix": "/"}
        values = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [model_app, policy_app | {"deployments": policy}],
        }
        environment = {
            "NIGHTJAR_API_READ_TOKEN": READ_TOKEN,
            "NIGHTJAR_API_READ_ACCESS": "token",
            "NIGHTJAR_API_TOKEN": TOKEN,
            "RAY_CLUSTER_NAMESPACE": "llm",
            "RAY_CLUSTER_NAME": f"chat-{RANDOM_PARTS[name]}",
            "NIGHTJAR_JOURNAL_DIR": str(self.journal),
            "RAY_worker_niceness": "0",  # Ray's 15 starves what another process keeps busy
            CLUSTER_VARIABLE: name,
        }
        self._run = Run(folder / name, values, **environment)

    def wait_until_it_serves(self) -> None:
        self._run.ready(PATIENCE_S)
        self.session = self._run.session

    def get(self, path: str) -> Any:
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/nightjar/{path}",
            headers={"Authorization": f"Bearer {READ_TOKEN}"},
            timeout=60.0,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer

    def set_mode(self, mode: str, reason: str = "") -> None:
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/nightjar/mode",
            headers={"Authorization": f"Bearer {TOKEN}"},
            json={"mode": mode, "reason": reason},
            timeout=60.0,
            trust_env=False,
        )
        answer.raise_for_status()

    def status(self) -> FleetStatus:
        return FleetStatus.model_validate(self.get("status").json())

    def learned(self) -> LearnedFile:
        return parse_learned_file(self.get("learned").content)

    def entries(self) -> tuple[JournalEntry, ...]:
        return tuple(read_journal(self.journal / FILE_NAME))

    def stop(self) -> None:
        if self._run.process.poll() is None:
            assert self._run.stop() == 0, self._run.err.read_text()


def run_upgrade(folder: Path) -> Upgrade:
    with ExitStack() as stack:
        service = stack.enter_context(Forwarder())
        old = Cluster("old", folder, service.url)
        stack.callback(old.stop)
        old.wait_until_it_serves()
        first_status = old.status()
        service.point_at(old.port)
        crowd = stack.enter_context(Crowd(service.port, USERS, TOKENS))
        until(lambda: len(crowd.answered_by("old")) >= LEAST_ANSWERS and has_learned(old), "the first cluster has learned")

        new = Cluster("new", folder, service.url)
        stack.callback(new.stop)
        new.wait_until_it_serves()
        old.set_mode("off", "incident")
        until(lambda: is_off(new.status()), "the second cluster heard that the first was switched off")
        service.point_at(new.port)
        moved_s = time.time()
        moved_status = new.status()
        new.set_mode("default")
        until(lambda: service.open_to(old.port) == 0, "nothing is under way in the first cluster")
        old.stop()
        over_s = time.time()
        began_s = min((entry.time_s for entry in new.entries() if entry.decided), default=moved_s)
        until(lambda: time.time() >= max(began_s, moved_s) + FIRST_MINUTE_S, "the new cluster's first minute")
        last_status, last_learned = new.status(), new.learned()
        crowd.__exit__()
        new.stop()
        return Upgrade(
            crowd=crowd,
            moved_s=moved_s,
            over_s=over_s,
            asked=tuple(service.learned),
            ports={"old": old.port, "new": new.port},
            first_status=first_status,
            moved_status=moved_status,
            last_status=last_status,
            last_learned=last_learned,
            journals={"old": old.entries(), "new": new.entries()},
            left_over=(*session_members(old.session), *session_members(new.session)),
        )


def has_learned(cluster: Cluster) -> bool:
    """Whether the plan that it would hand on gives what the best K does, at the batch in use."""
    groups = cluster.learned().groups
    return bool(groups) and true_share(Table(rows=groups[0].plan)) >= WITHIN


def is_off(status: FleetStatus) -> bool:
    """Whether all of its replicas run what says so."""
    return {(str(replica.mode), replica.settings_confirmed) for replica in status.replicas} == {("off", True)}


def until(holds: Any, what: str) -> None:
    """Look twice a second."""
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_s, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.5)


def true_share(plan: Table) -> float:
    """What the plan's K truly gives at the batch in use, over what the best K does."""
    length = ks_by_batch(plan, PROFILE.limits.max_num_seqs)[ROWS]
    return NOMINAL.goodput(ROWS, length) / NOMINAL.goodput(ROWS, NOMINAL.best_k(ROWS))


def test_traffic_moves_from_one_cluster_to_the_other_and_no_request_fails(upgrade: Upgrade) -> None:
    crowd = upgrade.crowd
    assert crowd.failures == []
    assert len(crowd.answered_by("old")) >= LEAST_ANSWERS
    assert len(crowd.answered_by("new")) >= LEAST_AFTERWARDS
    assert all(answer.began_s <= upgrade.moved_s for answer in crowd.answered_by("old"))
    assert all(answer.ended_s <= upgrade.over_s for answer in crowd.answered_by("old"))
    for cluster in ("old", "new"):
        assert {answer.is_stream for answer in crowd.answered_by(cluster)} == {True, False}
    assert [answer for answer in crowd.answered_by("old") if answer.is_stream and answer.ended_s > upgrade.moved_s]
    assert upgrade.left_over == ()


def test_a_first_install_that_finds_nobody_at_its_own_service_is_no_error(upgrade: Upgrade) -> None:
    policy = upgrade.first_status.policy
    assert policy.seed_problem == ""
    assert "cannot be read (ConnectError" in policy.seed_notice
    assert upgrade.steered("old"), "it plans all the same"
    its_own = upgrade.seeded("old", before_s=upgrade.moved_s)
    assert its_own == [], "nor does it take its own evidence, should it ask again while it serves; later the new one answers there"


def test_the_new_cluster_seeds_itself_from_the_old_through_the_service_with_the_read_token(upgrade: Upgrade) -> None:
    assert len(upgrade.known) >= 2
    assert len(upgrade.seeded("new")) == 1
    assert upgrade.seed.about.fleet_id not in {"", upgrade.last_learned.about.fleet_id}
    assert upgrade.last_status.policy.seed_problem == ""
    assert upgrade.last_status.policy.seed_notice == ""


def test_an_off_that_is_set_in_the_first_cluster_beside_the_second_holds_in_the_second_until_it_is_taken_back(
    upgrade: Upgrade,
) -> None:
    assert upgrade.moved_status.policy.not_known_before == ""
    (override,) = upgrade.moved_status.overrides
    assert (str(override.mode), override.reason) == ("off", "incident")
    assert override.carried_from.endswith("/nightjar/learned")
    assert {str(replica.mode) for replica in upgrade.moved_status.replicas} == {"off"}
    assert upgrade.last_status.overrides == ()


def test_the_first_settings_that_steer_carry_the_seeded_plan(upgrade: Upgrade) -> None:
    (group,) = upgrade.seed.groups
    seeded = ks_by_batch(Table(rows=group.plan), PROFILE.limits.max_num_seqs)
    first: dict[str, Settings] = {}
    for _, name, settings in upgrade.steered("new"):
        first.setdefault(name, settings)
    assert len(first) == 2
    in_use = sorted({cell.batch_bucket for cell in upgrade.known})
    for settings in first.values():
        assert isinstance(settings.plan, Table)
        planned = ks_by_batch(settings.plan, PROFILE.limits.max_num_seqs)
        known_batches = [batch for batch in range(1, USERS + 1) if batch_bucket(batch) in in_use]
        assert [planned[batch] for batch in known_batches] == [seeded[batch] for batch in known_batches]
        assert true_share(settings.plan) >= WITHIN


def test_no_cell_that_was_known_is_tried_in_the_first_minute(upgrade: Upgrade) -> None:
    steered = upgrade.steered("new")
    until_s = steered[0][0] + FIRST_MINUTE_S
    tried = {
        Cell(batch_bucket(segment.first_batch_size), segment.num_speculative_tokens)
        for at_s, _, settings in steered
        if at_s <= until_s and isinstance(settings.plan, Table)
        for segment in settings.plan.segments
    }
    assert not tried & upgrade.known
    tried_before = [
        segment
        for _, _, settings in upgrade.steered("old")
        if isinstance(settings.plan, Table)
        for segment in settings.plan.segments
    ]
    assert tried_before, "the old cluster, which knew nothing, had to try"
