"""What is restated of Ray and vLLM is what the installed ones say."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from nightjar.deployments.configuration.check import engine_schema as vllm_names
from nightjar.deployments.configuration.check import serve_schema
from nightjar.deployments.configuration.check.deployed import BESIDE_ARGS_ALONE, as_deployed
from nightjar.deployments.configuration.check.engine_facts import environment_of
from nightjar.deployments.configuration.check.engine_schema import SPECULATIVE_METHODS
from nightjar.deployments.configuration.migrate.vllm_command import SHORT_OPTIONS
from nightjar.deployments.llm_config import read_args
from tests.contract.__main__ import FOLDER, VERSIONS
from tests.contract.touched import ROOT

SET_BY_THE_ENGINE = {"target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config"}


@pytest.fixture(scope="module")
def vllm_folder() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    versions = {importlib.metadata.version(name) for name in importlib.metadata.packages_distributions()["vllm"]}
    if versions != {vllm_names.VLLM_VERSION}:
        pytest.skip(f"vLLM {versions} is installed, the names are of {vllm_names.VLLM_VERSION}")
    return Path(spec.submodule_search_locations[0])


def fields_of(file: Path, *classes: str) -> dict[str, str]:
    """Public fields of dataclasses, read without importing them."""
    return {
        field.target.id: ast.unparse(field.annotation)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and not field.target.id.startswith("_")
    }


def test_argument_names_are_vllms(vllm_folder: Path) -> None:
    engine = fields_of(vllm_folder / "engine/arg_utils.py", "EngineArgs", "AsyncEngineArgs")
    server = fields_of(vllm_folder / "entrypoints/launchers/cli_args.py", "FrontendArgs", "BaseFrontendArgs")
    speculative = fields_of(vllm_folder / "config/speculative.py", "SpeculativeConfig")
    assert engine.keys() == vllm_names.ENGINE_ARGUMENTS
    assert server.keys() == vllm_names.SERVER_ARGUMENTS
    assert speculative.keys() - SET_BY_THE_ENGINE == vllm_names.SPECULATIVE_ARGUMENTS
    flags = {name for name, kind in (engine | server).items() if set(kind.split(" | ")) <= {"bool", "None"}}
    assert flags == vllm_names.FLAGS
    assert {name for name, kind in (engine | server).items() if set(kind.split(" | ")) <= {"str", "None"}} == vllm_names.TEXTS


def short_options_of(file: Path) -> dict[str, str]:
    """Options of one dash, each with the argument that it is short for."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = [[str(word.value) for word in call.args if isinstance(word, ast.Constant)] for call in calls]
    pairs = [pair for pair in names if len(pair) == 2 and pair[0].startswith("--") and re.match("-[a-z]", pair[1])]
    return {short: long.removeprefix("--").replace("-", "_") for long, short in pairs}


def test_short_options_are_vllms(vllm_folder: Path) -> None:
    engine = short_options_of(vllm_folder / "engine/arg_utils.py")
    server = short_options_of(vllm_folder / "entrypoints/launchers/cli_args.py")
    assert {**engine, **server, "-O": "optimization_level"} == SHORT_OPTIONS


def argument_names(folder: Path) -> tuple[set[str], set[str]]:
    """Of engine and server together, and of `speculative_config`, in the sources of one version."""
    homes = ("entrypoints/common/cli_args.py", "entrypoints/launchers/cli_args.py")
    server = next(folder / home for home in homes if (folder / home).exists())
    engine = fields_of(folder / "engine/arg_utils.py", "EngineArgs", "AsyncEngineArgs")
    speculative = fields_of(folder / "config/speculative.py", "SpeculativeConfig")
    return {*engine, *fields_of(server, "FrontendArgs", "BaseFrontendArgs")}, speculative.keys() - SET_BY_THE_ENGINE


def test_which_versions_have_an_argument_is_as_in_their_sources(vllm_folder: Path) -> None:
    folders = {version: ROOT / FOLDER / version / "vllm" for version in VERSIONS} | {vllm_names.VLLM_VERSION: vllm_folder}
    if not all(folder.is_dir() for folder in folders.values()):
        pytest.skip("`make contract` brings the sources of the other versions")
    names = {version.rpartition(".")[0]: argument_names(folder) for version, folder in folders.items()}
    for number, speculative in enumerate((False, True)):
        found = {version: both[number] for version, both in names.items()}
        for name in set().union(*found.values()):
            having = [version for version in sorted(found) if name in found[version]]
            assert list(vllm_names.versions_with(name, speculative=speculative)) == having, name
    some = {*vllm_names.IN_SOME_VERSIONS, *vllm_names.SPECULATIVE_IN_SOME_VERSIONS}
    assert some <= set().union(*(both[0] | both[1] for both in names.values()))


def test_speculative_methods_are_vllms(vllm_folder: Path) -> None:
    names = {
        element.value
        for node in ast.parse((vllm_folder / "config/speculative.py").read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.endswith(("Types", "SpeculativeMethod"))
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant) and isinstance(element.value, str)
    }
    assert {name for name in names if not name.endswith("_mtp")} == set(SPECULATIVE_METHODS)


def test_field_names_are_rays() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    config = pytest.importorskip("ray.serve.config")
    pairs: tuple[tuple[type[BaseModel], Any, set[str]], ...] = (
        (serve_schema.ServeConfig, schema.ServeDeploySchema, set()),
        (serve_schema.HTTPOptions, schema.HTTPOptionsSchema, set()),
        (serve_schema.GRPCOptions, schema.gRPCOptionsSchema, set()),
        (serve_schema.ServeApplication, schema.ServeApplicationSchema, {"host", "port"}),  # of the single-application form
        (serve_schema.DeploymentOverride, schema.DeploymentSchema, set()),
        (serve_schema.RayActorOptions, schema.RayActorOptionsSchema, set()),
        (serve_schema.AutoscalingConfig, config.AutoscalingConfig, set()),
    )
    for ours, theirs, left_out in pairs:
        assert ours.model_fields.keys() == theirs.model_fields.keys() - left_out, ours


def test_what_a_builder_cannot_set_is_what_serve_has_no_option_for() -> None:
    deployment = pytest.importorskip("ray.serve").Deployment
    options = inspect.signature(deployment.options).parameters
    assert serve_schema.DeploymentOptions.model_fields.keys() - options.keys() == BESIDE_ARGS_ALONE


@pytest.mark.parametrize("entry", [{}, {"runtime_env": {"env_vars": {"B": "3"}}}, {"accelerator_type": "H100"}])
@pytest.mark.parametrize(
    "deployments",
    [[], [{"name": "LLM"}], [{"name": "LLM", "ray_actor_options": {"num_gpus": 1, "runtime_env": {"env_vars": {"C": "4"}}}}]],
)
def test_a_replica_gets_the_variables_and_gpus_that_serve_gives_it(
    entry: dict[str, Any], deployments: list[dict[str, Any]]
) -> None:
    serve = pytest.importorskip("ray.serve")
    from ray.serve._private.application_state import override_deployment_info
    from ray.serve._private.build_app import build_app
    from ray.serve._private.deployment_info import DeploymentInfo
    from ray.serve.schema import ServeApplicationSchema

    args = {"llm_configs": [{"model_loading_config": {"model_id": "m"}, **entry}]}
    above = {"env_vars": {"A": "1", "B": "2"}}
    application = {"import_path": "nightjar.deployments.app:build", "runtime_env": above, "args": args, "deployments": deployments}
    config, _ = read_args(args)
    assert config is not None
    deployment = serve.deployment(type("Replica", (), {})).options(name="LLM", ray_actor_options=config.actor_options())
    (built,) = build_app(deployment.bind(), name="m", default_runtime_env=above).deployments
    info = DeploymentInfo(built._deployment_config, built._replica_config, start_time_ms=0, deployer_job_id="")
    overridden = override_deployment_info({"LLM": info}, ServeApplicationSchema.model_validate(application))
    theirs = overridden["LLM"].replica_config.ray_actor_options
    ours = as_deployed(config, application).config
    assert environment_of(ours) == theirs.get("runtime_env", {}).get("env_vars", {})
    assert ours.actor_options().get("num_gpus", 0) == theirs.get("num_gpus", 0)
