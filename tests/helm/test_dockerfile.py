"""The Dockerfile, read and not built: pinned, multi-stage, non-root, and in step with chart and package."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

import yaml

from tests.helm.rendering import CHART, ROOT

TARGETS = {"cpu", "gpu", "load"}
LOCUSTFILE = "/opt/nightjar/locustfile.py"


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]


def text() -> str:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    stage = Stage("")
    for line in filter(None, text().splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base)
        else:
            stage.instructions.append((instruction, rest))
    return found


def lineage(name: str) -> list[Stage]:
    """The stage and the stages that it starts from."""
    all_stages = stages()
    chain = []
    while name in all_stages:
        chain.append(all_stages[name])
        name = chain[-1].base
    return chain


def test_the_one_base_image_is_pinned_to_a_patch_version_and_all_stages_have_names() -> None:
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert {stage.base for stage in stages().values()} <= {"${PYTHON}", *stages()}
    assert set(stages()) >= TARGETS


def test_targets_run_as_the_charts_user_by_number() -> None:
    user = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    for target in TARGETS:
        assert stages()[target].all("USER") == [f"{user['runAsUser']}:{user['runAsGroup']}"]
        assert stages()[target].instructions[-1][0] in {"USER", "CMD"}


def test_targets_hold_no_sources_and_no_build_tools_of_pip() -> None:
    for target in TARGETS:
        assert all(copy.startswith("--from=packages-") for stage in lineage(target) for copy in stage.all("COPY"))
        assert not any("pip" in run for stage in lineage(target) for run in stage.all("RUN"))


def test_every_install_is_pinned_by_constraints_or_version() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [command for stage in stages().values() for run in stage.all("RUN") for command in run.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 5
    for command in installs:
        assert "--constraint /constraints-" in command or "==" in command, command
    assert {extra for command in installs for extra in re.findall(r"\.whl\)\[(\w+)\]", command)} == TARGETS <= set(extras)
    assert "ADD" not in {instruction for stage in stages().values() for instruction, _ in stage.instructions}


def test_serving_images_hold_what_kuberay_calls() -> None:
    for target in ("cpu", "gpu"):
        packages = " ".join(run for stage in lineage(target) for run in stage.all("RUN"))
        assert re.search(r"apt-get install .*--no-install-recommends .*\bwget\b", packages)


def test_what_is_copied_is_there_and_let_through() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for copy in stage.all("COPY")
        if not copy.startswith("--from")
        for source in copy.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_locust_and_the_small_models_lie_where_the_chart_looks() -> None:
    template = (CHART / "templates/_load_pod.tpl").read_text()
    assert f"--locustfile={LOCUSTFILE}" in template
    assert LOCUSTFILE in " ".join(stages()["packages-load"].all("RUN"))
    assert "NIGHTJAR_MODELS=/opt/nightjar/models" in stages()["cpu"].all("ENV")[0]
    assert "NIGHTJAR_MODELS=/opt/nightjar/models nightjar models build" in " ".join(stages()["packages-cpu"].all("RUN"))
