"""The fake server that tests of the load room send to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loadtests.fake_server import FakeServer, running_fake_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running_fake_server() as fake:
        yield fake
