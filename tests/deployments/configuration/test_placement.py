"""`nightjar check` of a RayService: replicas that no pod holds wait for ever, so they are errors before it is deployed."""

from __future__ import annotations

import json
from fractions import Fraction
from textwrap import indent
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.configuration.check.placement import Demand, placement_findings
from nightjar.deployments.configuration.check.rayservice import PodGroup, ServicePods
from nightjar.deployments.configuration.check.report import check_text

OURS, HOSTED = "nightjar.deployments.app:build", "ray.serve.llm:build_openai_app"
FIXED, SCALED = {"num_replicas": 3}, {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}
ONE_POD: dict[str, Any] = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
PACKING = [{"name": "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", "value": "1"}]


def model(per_replica: int, replicas: dict[str, Any], on: str | None = "H100", host: str = OURS, **more: Any) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_id": "chat", "model_source": "someone/target"},
        "engine_kwargs": {
            "tensor_parallel_size": per_replica,
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
        },
        "deployment_config": replicas | more.pop("options", {}),
        "host": host,
        **({"accelerator_type": on} if on else {}),
        **more,
    }


def group(
    gpus: int | str, pods: dict[str, Any] | None = None, on: str = "", *, limit: str = "nvidia.com/gpu", **fields: Any
) -> dict[str, Any]:
    container = {"name": "ray", "resources": {"limits": {limit: gpus}} | fields.pop("more_resources", {})}
    start = {"resources": f"'{json.dumps({f'accelerator_type:{on}': 1})}'"} if on else {}
    template = {"spec": {"containers": [container], **fields.pop("spec", {})}}
    return {"groupName": "g", "rayStartParams": start, "template": template, **(ONE_POD if pods is None else pods), **fields}


def of(number: int) -> dict[str, int]:
    return {"replicas": number, "minReplicas": number, "maxReplicas": number}


def findings(models: list[dict[str, Any]], *groups: dict[str, Any], env: Any = PACKING, **cluster: Any) -> list[str]:
    """What `check` says of GPUs: severity and message."""
    applications = []
    for number, one in enumerate(models):
        entry = {name: value for name, value in one.items() if name != "host"}
        name, path = f"m{number}", one["host"]
        applications.append({"name": name, "route_prefix": f"/{name}", "import_path": path, "args": {"llm_configs": [entry]}})
    config = yaml.safe_dump({"applications": applications}, sort_keys=False)
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "head", "env": env}]}}}
    spec = {"rayClusterConfig": {"headGroupSpec": head, **cluster, "workerGroupSpecs": list(groups)}}
    manifest = yaml.safe_dump({"kind": "RayService", "spec": spec}, sort_keys=False)
    lines = check_text(f"{manifest}  serveConfigV2: |\n{indent(config, '    ')}").findings
    ours = [line for line in lines if "wait" in line.message or "were not counted" in line.message]
    others = [line for line in lines if line.severity == "error" and line not in ours]
    assert others == []
    return [f"{finding.severity}: {finding.message}" for finding in ours]


@pytest.mark.parametrize("replicas", [FIXED, SCALED])
@pytest.mark.parametrize("host", [OURS, HOSTED])
def test_nothing_is_said_of_what_fits(replicas: dict[str, Any], host: str) -> None:
    assert findings([model(2, replicas, host=host)], group(4), group(2)) == []


def test_a_replica_that_no_pod_holds_is_an_error_with_the_way_out() -> None:
    (line,) = findings([model(4, FIXED)], group(2, of(9)))
    assert line.startswith("error: one replica needs 4 GPUs of type H100 in one pod, and the largest of workerGroupSpecs has 2")
    assert "lower tensor_parallel_size" in line


def test_pods_with_gpus_enough_in_all_may_still_have_no_room_for_a_replica() -> None:
    (line,) = findings([model(4, FIXED)], group(6, of(2)))
    assert line.startswith(
        "error: 1 of 3 replicas would wait for ever: each needs 4 GPUs of type H100 in one pod, and there is room for 2"
    )


def test_pods_with_gpus_of_another_type_do_not_count() -> None:
    groups = group(4, on="H100"), group(4, of(40), on="L4")
    (line,) = findings([model(4, FIXED)], *groups)
    assert line.startswith("error: 2 of 3 replicas would wait for ever")
    assert findings([model(4, FIXED, on="L4")], *groups) == []
    (line,) = findings([model(4, FIXED, on="A100")], *groups)
    assert line.startswith("error: one replica needs 4 GPUs of type A100 in one pod, and such pods have H100, L4")


@pytest.mark.parametrize(
    ("label", "value"),
    [("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"), ("cloud.google.com/gke-accelerator", "nvidia-h100-80gb")],
)
def test_a_type_that_only_node_selectors_tell_makes_a_warning(label: str, value: str) -> None:
    other = group(4, of(40), spec={"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}})
    (line,) = findings([model(4, FIXED)], group(4, spec={"nodeSelector": {label: value}}), other)
    assert line.startswith("warning: 2 of 3 replicas may wait for ever")
    assert "node selectors leave no pod of their type" in line


def test_without_an_autoscaler_kuberay_keeps_replicas_whatever_maxreplicas_says() -> None:
    (line,) = findings([model(1, {"num_replicas": 4})], group(1, {"replicas": 1, "minReplicas": 0, "maxReplicas": 10}))
    assert line.startswith("error: 3 of 4 replicas would wait for ever")
    assert "raise replicas of a group" in line


def test_with_an_autoscaler_a_group_without_maxreplicas_is_unbounded() -> None:
    assert findings([model(1, {"num_replicas": 4000})], group(1, {"minReplicas": 0}, "H100"), enableInTreeAutoscaling=True) == []


def test_each_replica_of_a_group_is_as_many_pods_as_it_has_hosts() -> None:
    assert findings([model(1, {"num_replicas": 4})], group(1, of(2), numOfHosts=2)) == []


def test_parts_of_a_gpu_count_as_kuberay_counts_them() -> None:
    assert findings([model(1, {"num_replicas": 2})], group(2, limit="nvidia.com/mig-3g.40gb")) == []


def test_replicas_that_ray_serve_llm_serves_are_counted_too() -> None:
    (line,) = findings([model(1, {"num_replicas": 40}, host=HOSTED)], group(1, of(10)))
    assert line.startswith("error: 30 of 40 replicas would wait for ever")


def test_a_host_that_places_workers_by_bundles_may_use_several_pods_for_one_replica() -> None:
    groups = group(1), group(3)
    assert findings([model(4, {"num_replicas": 1}, host=HOSTED)], *groups) == []
    for strategy, needs in (("STRICT_PACK", "4 GPUs of type H100 in one pod"), ("STRICT_SPREAD", "4 x 1 GPUs of type H100")):
        placed = {"bundles": [{"GPU": 1}] * 4, "strategy": strategy}
        (line,) = findings([model(4, {"num_replicas": 1}, host=HOSTED, placement_group_config=placed)], *groups)
        assert line.startswith(f"error: one replica needs {needs}")


def test_what_stands_beside_the_arguments_of_a_hosted_model_counts() -> None:
    text = """\
kind: RayService
spec:
  serveConfigV2: |
    applications:
    - import_path: ray.serve.llm:build_openai_app
      args: {llm_configs: [{model_loading_config: {model_id: org/a.b}}]}
      deployments: [{name: 'LLMServer:org--a_b', num_replicas: 9}]
  rayClusterConfig:
    workerGroupSpecs:
    - {groupName: g, replicas: 4, template: {spec: {containers: [{resources: {limits: {nvidia.com/gpu: 1}}}]}}}
"""
    messages = [line.message for line in check_text(text).findings]
    assert any(message.startswith("5 of 9 replicas would wait for ever") for message in messages)


def test_models_that_fit_one_by_one_may_not_fit_together() -> None:
    models = [model(4, {"num_replicas": 2}), model(2, {"num_replicas": 3})]
    (line,) = findings(models, group(6, of(2)))
    assert line.startswith("error: all replicas on H100 together need 14 GPUs, and the pods do not hold 1 of them")
    assert findings(models, group(8, of(2))) == []


def test_what_one_arrangement_leaves_over_and_nothing_proves_is_a_warning() -> None:
    (line,) = findings([model(4, {"num_replicas": 2}), model(3, {"num_replicas": 1})], group(6, of(2)))
    assert line.startswith("warning: 1 of 1 replicas may wait for ever")


def test_where_serve_spreads_small_replicas_may_leave_no_room_for_large_ones() -> None:
    models, pods = [model(2, {"num_replicas": 2}), model(1, {"num_replicas": 2})], group(2, of(3))
    assert findings(models, pods) == []
    (line,) = findings(models, pods, env=[])
    assert line.startswith("warning: 1 of 2 replicas may wait for ever")
    assert "Serve spreads replicas over all pods" in line
    assert 'it packs them with RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY: "1" in env of the head' in line
    beside = [*models, model(1, {"num_replicas": 1}, host=HOSTED)]
    assert [line.split(" each")[0] for line in findings(beside, group(2, of(4)))] == ["warning: 1 of 2 replicas may wait for ever:"]


def test_auto_names_no_number_so_only_what_serve_may_ask_for_is_said() -> None:
    (line,) = findings([model(1, {"num_replicas": "auto"})], group(1, of(4)))
    assert line.startswith("warning: 96 of 100 replicas may wait for ever")
    assert "num_replicas: auto lets Serve ask for so many" in line


def test_a_limit_of_replicas_in_a_pod_holds() -> None:
    options = {"max_replicas_per_node": 1}
    (line,) = findings([model(1, FIXED, options=options)], group(4, of(2)))
    assert line.startswith("error: 1 of 3 replicas would wait for ever")


def test_the_heads_gpus_are_gpus() -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": 3}}}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "head", **limits}]}}}
    assert findings([model(1, FIXED)], headGroupSpec=head) == []
    (line,) = findings([model(1, FIXED)], group(0), headGroupSpec=head | {"rayStartParams": {"num-gpus": "0"}})
    assert line.startswith("error: one replica needs 1 GPU of type H100 in one pod")


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("host", [OURS, HOSTED])
def test_the_autoscaler_adds_no_pod_whose_group_does_not_name_the_accelerator(least: int, host: str) -> None:
    pods = {"replicas": least, "minReplicas": least, "maxReplicas": 4}
    (line,) = findings([model(1, FIXED, host=host)], group(1, pods), enableInTreeAutoscaling=True)
    assert line.startswith("error: ")
    assert "Ray's autoscaler adds no pod of workerGroupSpecs[0] (g), because it knows only what is written there: write " in line
    (pasted,) = [part.removesuffix(" into its rayStartParams") for part in line.split(": write ")[1:]]
    mended = group(1, pods) | {"rayStartParams": yaml.safe_load(pasted)}
    assert findings([model(1, FIXED, host=host)], mended, enableInTreeAutoscaling=True) == []


def test_a_group_with_resources_of_its_own_names_the_accelerator_there() -> None:
    pods = {"minReplicas": 0, "maxReplicas": 4, "resources": {"GPU": "1"}}
    (line,) = findings([model(1, FIXED)], group(1, pods), enableInTreeAutoscaling=True)
    assert line.endswith('write "accelerator_type:H100": "1" into its resources')
    pods["resources"] = {"GPU": "1", "accelerator_type:H100": "1"}
    assert findings([model(1, FIXED)], group(1, pods), enableInTreeAutoscaling=True) == []


def test_the_autoscaler_does_not_know_parts_of_a_gpu_by_their_name() -> None:
    pods = {"minReplicas": 0, "maxReplicas": 4}
    by_name = group(2, pods, "H100", limit="nvidia.com/mig-3g.40gb")
    (line,) = findings([model(1, FIXED)], by_name, enableInTreeAutoscaling=True)
    assert line.endswith('write num-gpus: "2" into its rayStartParams (it does not count nvidia.com/mig-3g.40gb)')
    by_name["rayStartParams"]["num-gpus"] = "2"
    assert findings([model(1, FIXED)], by_name, enableInTreeAutoscaling=True) == []


def test_resource_claims_are_no_lack_of_gpus_but_are_not_counted() -> None:
    claimed = group(0, more_resources={"claims": [{"name": "gpu"}]})
    (line,) = findings([model(1, {"num_replicas": 9})], claimed)
    assert line.startswith("warning: the GPUs of workerGroupSpecs[0] (g) were not counted (resource claims)")


def demand(row: tuple[int, int, str | None]) -> Demand:
    size, replicas, accelerator = row
    return Demand((size, replicas), replicas, (Fraction(size),), accelerator, at_most=replicas)


TYPES = st.sampled_from([None, "A", "B"])
DEMANDS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), TYPES), min_size=1, max_size=3, unique=True)
PODS = st.lists(st.tuples(st.integers(1, 6), TYPES), min_size=1, max_size=3)


def is_possible(items: list[Demand], pods: list[tuple[int, str | None]]) -> bool:
    """Every arrangement tried."""
    if not items:
        return True
    item, *others = items
    (size,) = item.bundles
    return any(
        free >= size
        and (None in {item.accelerator, there} or item.accelerator == there)
        and is_possible(others, [*pods[:number], (int(free - size), there), *pods[number + 1 :]])
        for number, (free, there) in enumerate(pods)
    )


@given(DEMANDS, PODS)
def test_an_error_is_never_wrong_and_silence_neither(
    rows: list[tuple[int, int, str | None]], pods: list[tuple[int, str | None]]
) -> None:
    demands = [demand(row) for row in rows]
    groups = tuple(PodGroup("g", gpus, 1, 1, frozenset({on} if on else ())) for gpus, on in pods)
    said = placement_findings(ServicePods(groups, packs=True), demands)
    possible = is_possible([one for one in demands for _ in range(one.replicas)], pods)
    if any(finding.severity == "error" for finding in said):
        assert not possible
    if not said:
        assert possible
