"""Broken values are refused before anything is installed, and the message says which and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helm.rendering import CHART, needs_helm, refusal, release

pytestmark = needs_helm
MODEL = {"name": "m", "modelSource": "org/m"}
GROUP = {"groupName": "g", "minReplicas": 1, "maxReplicas": 1, "resources": {"limits": {"nvidia.com/gpu": 2}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modles": []}, "additional properties 'modles' not allowed"),
        ({"models": [MODEL | {"engine_kwargs": {}}]}, "at '/models/0': additional properties 'engine_kwargs' not allowed"),
        ({"policy": {"settings": {"mode": "on"}}}, "at '/policy/settings/mode'"),
        ({"policy": {"settings": {"max_restart_share": 2}}}, "at '/policy/settings/max_restart_share': maximum: got 2, want 1"),
        ({"policy": {"settings": {"restart_share": 0.1}}}, "additional properties 'restart_share' not allowed"),
        ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match pattern"),
        ({"upgradeStrategy": {"type": "Rolling"}}, "at '/upgradeStrategy/type': value must be one of 'None', 'NewCluster'"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "invalid propertyName 'app.kubernetes.io/name'"),
        ({"podDisruptionBudget": {"workers": {"minAvailable": "50%"}}}, "minAvailable': got string, want integer"),
        ({"podSecurityContext": {"runAsNonroot": True}}, "additional properties 'runAsNonroot' not allowed"),
        ({"workerGroups": [GROUP | {"resources": {"limits": {"memory": "6GB"}}}]}, "limits/memory': '6GB' does not match"),
        ({"workerGroups": [{"groupName": "g"}]}, "missing properties 'minReplicas', 'maxReplicas', 'resources'"),
        ({"models": []}, "nothing to serve: name at least one of models, or paste a Serve config into serveConfigV2"),
        ({"serveConfigV2": "applications: []"}, "models and serveConfigV2 are both set"),
        ({"models": [], "serveConfigV2": "aplications: []"}, "serveConfigV2 is not a Serve config"),
        ({"models": [MODEL, MODEL]}, 'models: the name "m" is taken'),
        ({"models": [MODEL | {"name": "nightjar"}]}, 'the name "nightjar" is taken'),
        (
            {"models": [MODEL, MODEL | {"name": "n"}]},
            'models: n: the routePrefix "/" is taken; give each model its own, for example /n',
        ),
        (
            {"models": [MODEL | {"engineKwargs": {"model": "x"}}]},
            "engineKwargs.model and engineKwargs.served_model_name are set by",
        ),
        (
            {"models": [MODEL | {"acceleratorType": "H100", "engineKwargs": {"tensor_parallel_size": 4}}], "workerGroups": [GROUP]},
            "models: m: one replica needs 4 GPUs in one pod",
        ),
        ({"workerGroups": [GROUP | {"minReplicas": 3}]}, "workerGroups: g: minReplicas 3 is above maxReplicas 1"),
        ({"workerGroups": [GROUP | {"maxReplicas": 4}]}, "workerGroups: g: from 1 to 4 pods needs autoscaler.enabled"),
        ({"workerGroups": [GROUP, GROUP]}, 'workerGroups: the groupName "g" is taken'),
        ({"gcsFaultTolerance": {"backend": "redis"}}, "gcsFaultTolerance: backend redis needs redis.address"),
        ({"gcsFaultTolerance": {"backend": "rocksdb"}}, "backend rocksdb needs storage.claimName or storage.size"),
        ({"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}, "needs clusterUpgradeOptions"),
        (
            {"upgradeStrategy": {"type": "NewCluster"}, "gcsFaultTolerance": {"externalStorageNamespace": "x"}},
            "externalStorageNamespace would be shared by the old and the new cluster",
        ),
        ({"monitoring": {"dashboards": {"label": {}}}}, "at '/monitoring/dashboards': additional properties 'label' not allowed"),
        ({"loadTest": {"enabled": True, "workers": 0}}, "at '/loadTest/workers': minimum: got 0, want 1"),
    ],
)
def test_a_broken_value_is_named_and_explained(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values=values)


def test_a_chart_above_ours_may_use_it_as_a_dependency(tmp_path: Path) -> None:
    above = tmp_path / "above"
    (above / "charts").mkdir(parents=True)
    (above / "Chart.yaml").write_text("{apiVersion: v2, name: above, version: 0.1.0}")
    (above / "charts/nightjar").symlink_to(CHART)
    assert release(chart=above, values={"global": {"x": 1}, "nightjar": {"rayVersion": "2.60.1"}}).cluster["rayVersion"] == "2.60.1"
