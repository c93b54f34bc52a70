"""What the policy tells of replicas that Ray's memory monitor killed."""

import asyncio
from collections.abc import Sequence

from rich.console import Console

from nightjar.cluster.display.fleet import fleet_view
from nightjar.cluster.service.memory_kills import LOOK_PERIOD_S, MOST_KILLS, TOLD_FOR_S, DeadActor, MemoryKills
from tests.cluster.fleets import some_fleet
from tests.cluster.protocol import loop_clock, running_service

MESSAGE = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.5, ID: 4c39ac0f) was 22.91GB "
    "used / 23.54GB limit (0.973)\nOOM kill reason: Memory usage 24600000000B exceeded threshold"
)


class Ray:
    """Ray's GCS as far as it tells of dead actors; raises where there are none to tell of."""

    def __init__(self, *dead: DeadActor) -> None:
        self.dead: Sequence[DeadActor] | None = dead

    async def __call__(self) -> Sequence[DeadActor]:
        if self.dead is None:
            raise RuntimeError("GCS is away")
        return self.dead


def killed(name: str, at_s: float) -> DeadActor:
    return DeadActor(name, at_s, MESSAGE)


async def test_the_last_replica_that_was_killed_is_told_with_its_node_and_memory_and_other_actors_are_not() -> None:
    ray = Ray(killed("SERVE_REPLICA::chat#LLM#b", 120.0), killed("SERVE_REPLICA::chat#LLM#a", 60.0), killed("somebody", 180.0))
    kills = MemoryKills(ray)
    await kills.look()
    assert kills.of_late(200.0) == (2, "chat/b at 00:02:00 UTC on node 10.0.0.5, with 22.91GB used / 23.54GB limit")


async def test_a_message_in_other_words_still_tells_who_and_when() -> None:
    kills = MemoryKills(Ray(DeadActor("SERVE_REPLICA::chat#LLM#b", 120.0, "low on memory")))
    await kills.look()
    assert kills.of_late(200.0) == (1, "chat/b at 00:02:00 UTC")


async def test_a_kill_is_told_for_an_hour_and_the_latest_thousand_are_remembered() -> None:
    kills = MemoryKills(Ray(*(killed(f"SERVE_REPLICA::chat#LLM#{number}", float(number)) for number in range(MOST_KILLS + 5))))
    await kills.look()
    assert kills.of_late(1004.0)[0] == MOST_KILLS
    assert kills.of_late(1000.0 + TOLD_FOR_S)[0] == 5
    assert kills.of_late(2000.0 + TOLD_FOR_S) == (0, "")


async def test_where_ray_does_not_tell_what_was_seen_before_stays() -> None:
    ray = Ray(killed("SERVE_REPLICA::chat#LLM#a", 60.0))
    kills = MemoryKills(ray)
    await kills.look()
    ray.dead = None
    await kills.look()
    assert kills.of_late(100.0)[0] == 1


async def test_the_status_of_a_fleet_without_replicas_says_that_they_were_killed() -> None:
    ray = Ray()
    async with running_service(memory_kills=MemoryKills(ray)) as service:
        assert service.status().policy.memory_kills == 0
        ray.dead = (killed("SERVE_REPLICA::chat#LLM#a", loop_clock()()),)
        await asyncio.sleep(LOOK_PERIOD_S + 0.1)
        policy = service.status().policy
    assert (policy.memory_kills, policy.last_memory_kill.partition(" ")[0]) == (1, "chat/a")
    console = Console(width=300, color_system=None)
    with console.capture() as shown:
        console.print(fleet_view(some_fleet().model_copy(update={"policy": policy, "replicas": (), "groups": ()})))
    assert "Ray's memory monitor killed 1 replica within the last hour, the last chat/a at" in shown.get()
    assert "no replica has reported yet" in shown.get()
