"""Engines of a scheduler alone, for the tests of this folder. vLLM is imported as late as it is needed: some tests do without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engine.scheduler.scheduler_harness import Engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash

    init_none_hash(sha256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield tmp_path_factory.mktemp("model")


def engines(kind: str, folder: Path) -> Engines:
    from tests.engine.scheduler.scheduler_harness import KINDS, Engines

    return Engines(*KINDS[kind], folder)


@pytest.fixture
def sync(folder: Path) -> Engines:
    return engines("sync", folder)


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest, folder: Path) -> Engines:
    return engines(request.param, folder)
