"""The collector of the policy's process: seldom, but still there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from nightjar.cluster.service.garbage import YOUNG_OBJECTS, collect_seldom


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


class Knot:
    """An object that holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_exists_is_never_looked_at_again_and_young_objects_seldom() -> None:
    kept: list[list[int]] = [[] for _ in range(100)]
    collect_seldom()
    looked_at = {id(one) for one in gc.get_objects()}
    assert not any(id(one) in looked_at for one in kept)
    assert gc.get_threshold()[0] == YOUNG_OBJECTS


def test_a_cycle_is_still_found_by_itself() -> None:
    collect_seldom()
    knot = weakref.ref(Knot())
    assert knot() is not None
    held: list[list[int]] = [[] for _ in range(YOUNG_OBJECTS + 1)]
    assert knot() is None
    assert held
