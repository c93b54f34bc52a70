"""What `make test-pure` leaves out: a pytest plugin under which a test that skips fails the run unless it is listed here.

`pytest.importorskip` lets a file be collected where vLLM or Ray is absent. It also hides a file whose module is absent by
mistake, and the run is green. Here every skip must be in NEEDS, and every entry of NEEDS that names a module must have skipped:
a test that needs it no longer is taken off the list. Fails at the start where such a module is installed.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

import pytest

MODULES: Final = ("vllm", "torch", "ray")
"""Absent from a pure environment."""
NEEDS: Final[Mapping[str, str]] = {
    "tests/benchmarks/live/test_live_statistics.py": "ray",
    "tests/chaos/test_chaos.py": "ray",
    "tests/cluster/dashboards/test_alerts.py": "promtool",
    "tests/cluster/dashboards/test_boards.py::test_serve_exports_the_names_and_labels_that_are_used": "ray",
    "tests/cluster/dashboards/test_boards.py::test_vllm_exports_the_names_that_are_used": "vllm",
    "tests/cluster/dashboards/test_without_ray.py": "promtool",
    "tests/cluster/page/test_status_page.py": "a browser",
    "tests/cluster/test_client.py": "ray",
    "tests/cluster/telemetry/test_metrics.py::test_ray_gets_each_metric_once_with_the_hosts_labels": "ray",
    "tests/cluster/telemetry/test_metrics.py::test_rays_own_classes_take_what_the_backend_gives_them": "ray",
    "tests/cluster/telemetry/test_prometheus.py::test_prometheus_finds_nothing_wrong_with_a_page_of_several_ranks": "promtool",
    "tests/cluster/api/test_operations.py": "ray",
    "tests/cluster/test_policy_actor_ray.py": "ray",
    "tests/cluster/test_serve_config.py": "ray",
    "tests/cluster/storage/test_checkpoint.py::test_a_process_without_ray_has_no_store": "ray",
    "tests/contract/test_bodies.py::test_a_body_that_changed_under_its_name_is_named_until_it_was_read": "vllm",
    "tests/contract/test_bodies.py::test_every_body_of_the_installed_vllm_that_we_lean_on_was_read": "vllm",
    "tests/contract/test_bodies.py::test_every_method_of_vllm_that_we_override_has_a_sentence": "vllm",
    "tests/contract/test_contract.py::test_nothing_is_missing_in_the_installed_vllms_sources": "vllm",
    "tests/deployments/configuration/test_carried.py::test_every_field_of_rays_has_a_row_and_every_row_a_field": "ray",
    "tests/deployments/configuration/test_known_names.py::test_a_replica_gets_the_variables_and_gpus_that_serve_gives_it": "ray",
    "tests/deployments/configuration/test_known_names.py::test_argument_names_are_vllms": "vllm",
    "tests/deployments/configuration/test_known_names.py::test_field_names_are_rays": "ray",
    "tests/deployments/configuration/test_known_names.py::test_speculative_methods_are_vllms": "vllm",
    "tests/deployments/configuration/test_known_names.py::test_which_versions_have_an_argument_is_as_in_their_sources": "vllm",
    "tests/deployments/configuration/test_serve_samples.py": "the samples of KubeRay and Ray",
    "tests/deployments/configuration/test_shipped_configs.py::test_a_shipped_file_is_what_serve_takes": "ray",
    "tests/deployments/proof/kit/test_rehearsal.py": "vllm",
    "tests/deployments/proof/test_drafted_slots.py": "torch",
    "tests/rig/test_mapped_device.py": "vllm",
    "tests/deployments/proof/test_tiny_models.py": "torch",
    "tests/deployments/test_app.py": "ray",
    "tests/deployments/live/test_by_hand.py": "ray",
    "tests/deployments/plain_vllm/test_command.py::test_of_vllms_own_arguments_what_was_typed_is_the_users": "vllm",
    "tests/deployments/plain_vllm/test_command.py::test_the_parser_is_vllms_own_with_a_group_more": "vllm",
    "tests/deployments/plain_vllm/test_server.py::test_our_series_stand_on_a_page_that_vllm_reads_from_files": "vllm",
    "tests/deployments/plain_vllm/test_serving.py": "vllm",
    "tests/deployments/plain_vllm/test_without_ray.py": "vllm",
    "tests/deployments/test_drafter_kinds.py::test_every_method_of_the_installed_vllm_is_in_the_table_or_an_alias_of_mtp": "vllm",
    "tests/deployments/engine/test_engine_processes.py::test_without_nvidias_driver_no_memory_is_waited_for": "vllm",
    "tests/deployments/engine/test_graph_memory.py::test_both_of_vllms_runners_say_it_in_these_words": "vllm",
    "tests/deployments/engine/test_graph_plan.py::test_graphs_and_hits_are_those_of_vllms_own_code": "vllm",
    "tests/deployments/test_hosted_doors.py": "ray",
    "tests/deployments/test_metrics.py::test_vllms_own_series_carry_these_labels": "vllm",
    "tests/deployments/test_models.py::test_build_makes_three_described_folders_and_a_second_build_leaves_them": "torch",
    "tests/deployments/test_models.py::test_build_replaces_its_own_older_folder_but_no_stranger": "torch",
    "tests/deployments/test_models.py::test_inflated_target_gives_bit_equal_logits": "torch",
    "tests/deployments/test_models.py::test_list_writes_json_for_programs": "torch",
    "tests/deployments/test_models.py::test_weight_noise_is_seeded_scaled_and_spares_what_belongs_to_no_layer": "torch",
    "tests/deployments/engine/test_openai_server.py::test_an_engine_that_cannot_be_observed_serves_and_the_log_says_why": "vllm",
    "tests/deployments/engine/test_openai_server.py::test_an_observer_counts_once_and_bears_all_that_vllm_tells_loggers": "vllm",
    "tests/deployments/engine/test_openai_server.py::test_kwargs_are_vllms_own_engines_and_servers_alike": "vllm",
    "tests/deployments/engine/test_openai_server.py::test_misspelt_kwarg_is_named_with_the_nearest_real_one": "vllm",
    "tests/deployments/test_replica.py": "ray",
    "tests/deployments/test_routes.py": "vllm",
    "tests/deployments/live/test_serving.py": "ray",
    "tests/deployments/live/test_serving_hung.py": "ray",
    "tests/deployments/live/test_serving_killed_engine.py": "ray",
    "tests/deployments/live/test_serving_plainly.py": "ray",
    "tests/deployments/live/test_serving_restarts.py": "ray",
    "tests/deployments/live/test_tutorial.py": "ray",
    "tests/engine/scheduler/test_control.py": "vllm",
    "tests/engine/worker/test_cpu_worker.py": "vllm",
    "tests/engine/scheduler/test_draft_lending.py": "vllm",
    "tests/engine/scheduler/test_draft_slots.py": "vllm",
    "tests/engine/worker/test_draft_budget.py": "vllm",
    "tests/engine/worker/test_drafter.py": "vllm",
    "tests/engine/scheduler/test_drafting.py": "vllm",
    "tests/engine/scheduler/test_drafting_by_hand.py": "vllm",
    "tests/engine/test_data_parallel_engine.py": "vllm",
    "tests/engine/test_hooks.py": "vllm",
    "tests/engine/worker/test_kv_only_head.py": "vllm",
    "tests/engine/scheduler/test_kv_pool.py": "vllm",
    "tests/engine/scheduler/test_kv_pool_sequences.py": "vllm",
    "tests/engine/test_layers_engine.py": "vllm",
    "tests/engine/memory/test_memory_cpu.py": "vllm",
    "tests/engine/memory/test_memory_cuda.py": "vllm",
    "tests/engine/memory/test_memory_sizes.py": "torch",
    "tests/engine/scheduler/test_scheduler.py": "vllm",
    "tests/engine/scheduler/test_step_loop.py": "vllm",
    "tests/engine/test_stock_table.py": "vllm",
    "tests/engine/worker/test_step_reports.py": "vllm",
    "tests/engine/test_tensor_parallel_engine.py": "vllm",
    "tests/engine/worker/test_v2_worker.py": "vllm",
    "tests/engine/worker/test_worker.py": "vllm",
    "tests/fleet/test_operator.py": "ray",
    "tests/gpu_paths/test_failing_passes.py": "vllm",
    "tests/gpu_paths/test_gpu_paths.py": "vllm",
    "tests/gpu_paths/test_off_on_v2.py": "vllm",
    "tests/gpu_paths/test_ray_executor.py": "ray",
    "tests/gpu_paths/test_ray_other_node.py": "ray",
    "tests/gpu_paths/test_ray_small_model.py": "ray",
    "tests/loadtests/assessment/test_scrapes.py::test_every_series_that_is_read_is_one_that_the_installed_vllm_exports": "vllm",
    "tests/test_examples.py::test_the_examples_of_a_module_are_true": "vllm",
    "tests/upgrade/test_upgrade.py": "ray",
}
"""By file, or by test of a file: the module that it needs, or a program that may or may not be there."""


def listed(node_id: str, needs: Mapping[str, str] = NEEDS) -> str:
    """The entry that a test or a file falls under, or "".

    >>> listed("tests/a.py::test_b[1]", {"tests/a.py::test_b": "ray"}), listed("tests/a.py::test_c", {"tests/a.py": "ray"})
    ('tests/a.py::test_b', 'tests/a.py')
    >>> listed("tests/a.py::test_c", {"tests/a.py::test_b": "ray"})
    ''
    """
    test = node_id.split("[", maxsplit=1)[0]
    return next((entry for entry in (test, test.split("::", maxsplit=1)[0]) if entry in needs), "")


def complaints(skipped: Collection[str], needs: Mapping[str, str] = NEEDS, *, is_whole: bool = True) -> list[str]:
    """What is wrong with a run, given the ids of tests and files that skipped. `is_whole`: all tests were to run.

    >>> complaints(["tests/a.py::test_b"], {"tests/c.py": "ray", "tests/d.py": "a browser"})
    ['tests/a.py::test_b skipped and is not in tests/pure.py', 'tests/c.py is in tests/pure.py for ray and did not skip']
    """
    used = {listed(node, needs) for node in skipped}
    unlisted = [f"{node} skipped and is not in tests/pure.py" for node in skipped if not listed(node, needs)]
    stale = [entry for entry, need in needs.items() if is_whole and need in MODULES and entry not in used]
    return [*unlisted, *(f"{entry} is in tests/pure.py for {needs[entry]} and did not skip" for entry in stale)]


class PureRun:
    """Collects what skipped, and fails the run on complaints. With pytest-xdist it sits beside the workers, which report to it."""

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._skipped: dict[str, None] = {}  # ordered, each once: every worker collects all files

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that skipped as a whole."""
        if report.skipped:
            self._skipped[report.nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that skipped."""
        if report.skipped:
            self._skipped[report.nodeid] = None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a green run with complaints into a failed one."""
        if session.exitstatus == pytest.ExitCode.OK and complaints(self._skipped, is_whole=self._is_whole):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was left out, then what is wrong."""
        counts = Counter(NEEDS[listed(node)] for node in self._skipped if listed(node))
        left_out = ", ".join(f"{count} for {need}" for need, count in counts.most_common())
        terminalreporter.section("left out: files and tests that need what is not here")
        terminalreporter.line(left_out or "none")
        for line in complaints(self._skipped, is_whole=self._is_whole):
            terminalreporter.line(line, red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run from the process that writes its summary."""
    found = [module for module in MODULES if importlib.util.find_spec(module)]
    if found:
        raise pytest.UsageError(f"{', '.join(found)} can be imported here: make test-pure runs in an environment without")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(PureRun(is_whole=config.args_source is pytest.Config.ArgsSource.TESTPATHS))
