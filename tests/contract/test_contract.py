"""Names are found where a version has them, by whatever way it has them, and missed where it has not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from nightjar.deployments.engine.start import hooks
from nightjar.deployments.engine.start.hooks import Hook
from tests.contract import touched
from tests.contract.__main__ import VERSIONS, Judged, _table
from tests.contract.sources import Sources

FILES = {
    "vllm/__init__.py": "",
    "vllm/config/__init__.py": "from .model import ModelConfig\nfrom vllm.config.model import helper as renamed\n",
    "vllm/config/model.py": (
        "class Base:\n"
        "    def __init__(self, size, *, kind=None):\n"
        "        self.size = size\n"
        "    def inherited(self, tokens): ...\n"
        "class ModelConfig(Base):\n"
        "    dtype: str = 'auto'\n"
        "def helper(x): ...\n"
    ),
    "vllm/core.py": "try:\n    from vllm.gone import Thing\nexcept ImportError:\n    Thing = None\nif True:\n    LIMIT = 3\n",
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Sources(tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vllm.config.model", "ModelConfig"),
        ("vllm.config", "ModelConfig"),
        ("vllm.config", "renamed"),
        ("vllm.config", "model"),
        ("vllm.config", "ModelConfig.inherited"),
        ("vllm.config", "ModelConfig.dtype"),
        ("vllm.core", "LIMIT"),
    ],
)
def test_a_name_is_found_through_imports_bases_and_branches(module: str, name: str, sources: Sources) -> None:
    assert sources.find(module, name) is not None


@pytest.mark.parametrize(
    ("module", "name"),
    [("vllm.gone", "Thing"), ("vllm.config", "Modelconfig"), ("vllm.config", "ModelConfig.moved"), ("vllm.config", "helper")],
)
def test_a_name_that_is_not_there_is_missed(module: str, name: str, sources: Sources) -> None:
    assert sources.find(module, name) is None


@pytest.mark.parametrize(
    ("hook", "problems"),
    [
        (Hook("vllm.config", "ModelConfig", fields=("dtype", "size", "inherited")), []),
        (Hook("vllm.config", "ModelConfig", fields=("width",)), ["vllm.config.ModelConfig: holds no 'width'"]),
        (Hook("vllm.config", "ModelConfig.__init__", parameters=("size", "kind")), []),
        (
            Hook("vllm.config", "ModelConfig.inherited", parameters=("token_ids",)),
            ["vllm.config.ModelConfig.inherited: takes no parameter 'token_ids'"],
        ),
        (Hook("vllm.config", "ModelConfig.moved"), ["vllm.config.ModelConfig.moved: there is none"]),
    ],
)
def test_fields_and_parameters_are_told_as_the_start_up_check_tells_them(hook: Hook, problems: list[str], sources: Sources) -> None:
    assert touched._problems(sources, hook) == problems


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # vLLM, on import
def test_nothing_is_missing_in_the_installed_vllms_sources() -> None:
    file = Path(pytest.importorskip("vllm.version").__file__)
    assert touched.missing(Sources(file.parents[1])) == []


def test_of_a_name_that_moved_one_home_is_enough_and_an_import_is_told_with_its_place(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "vllm/cli.py").write_text("class FrontendArgs: ...\n")
    elsewhere = ("vllm.elsewhere",)
    moved = {"FrontendArgs": (*elsewhere, "vllm.cli"), "get_kv_cache_groups": elsewhere, "cli_env_setup": elsewhere}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(touched, "HOMES", moved)
        found = {one.what for one in touched.missing(sources) if one.feature == touched.IMPORTS}
    assert "get_kv_cache_groups in none of vllm.elsewhere" in found
    assert not any(line.startswith("FrontendArgs") for line in found)
    assert any(
        line.startswith("vllm.v1.core.sched.scheduler.Scheduler, at deployments/engine/scheduler/steered.py:") for line in found
    )
    assert set(moved) == set(hooks.HOMES)


def test_a_line_of_80_characters_shows_every_version_and_what_it_lacks() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    lacks = [touched.Missing("steering", "vllm.core.gone: there is none")]
    console.print(_table([Judged(version, lacks if version == "0.33.0" else [], []) for version in VERSIONS], num_bodies=7))
    told = console.export_text().splitlines()
    head, steering, heads, bodies = (
        next(line.split() for line in told if name in line) for name in ("vLLM", "steering", "heads", "bodies")
    )
    assert [word for word in head if word[0].isdigit()] == list(VERSIONS)
    assert (" ".join(steering).count("all there"), " ".join(steering).count("1 missing")) == (3, 1)
    assert (" ".join(heads).count("not needed"), " ".join(bodies).count("all read")) == (2, 4)
