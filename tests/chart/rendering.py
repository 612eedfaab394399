"""Owns how tests render the chart: through Helm's own engine, into Kubernetes objects, for a matrix of values."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (it comes with forebay[test])")

CHART = Path(__file__).parents[2] / "helm" / "forebay"
NAMESPACE = "models"
TIERS = ("frontend", "executor")

Object = dict[str, Any]

_ENV = [
    {"name": "FOREBAY_LOG_LEVEL", "value": "debug"},
    {"name": "HTTPS_PROXY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}},
    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
]
_PLACEMENT = {
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}}
            ]
        },
    },
    "topologySpreadConstraints": [
        {"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"},
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 2,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"of": "mine"}},
        },
    ],
    "priorityClassName": "serving",
    "podLabels": {"team": "search"},
    "podAnnotations": {"linkerd.io/inject": "enabled", "build": "1"},
}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cpu-executor": {"executor": {"gpu": {"count": 0}, "resources": {"limits": {"cpu": "4", "memory": "8Gi"}}}},
    "other-gpu": {"executor": {"gpu": {"resource": "amd.com/gpu"}, "runtimeClassName": "amd"}},
    "model-on-claim": {"model": {"existingClaim": "models", "path": "qwen/base", "servedNames": ["qwen", "qwen:base"]}},
    "model-at-root-of-claim": {"model": {"existingClaim": "models", "revision": "ignored"}},
    "gated-model": {
        "model": {"id": "org/gated", "revision": "v1.2", "hubToken": {"existingSecret": "hub", "key": "t"}}
    },
    "cache-on-claim": {
        "frontend": {"cache": {"existingClaim": "small-cache"}},
        "executor": {"cache": {"existingClaim": "big-cache"}},
    },
    "cache-with-limit": {"executor": {"cache": {"sizeLimit": "80Gi"}, "shm": {"sizeLimit": "4Gi"}}},
    "one-of-each": {"frontend": {"replicas": 1}, "executor": {"replicas": 1}},
    "many-of-each": {
        "frontend": {"replicas": 4, "podDisruptionBudget": {"maxUnavailable": "25%"}},
        "executor": {"replicas": 3, "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}},
    },
    "no-budgets": {
        "frontend": {"replicas": 3, "podDisruptionBudget": {"enabled": False}},
        "executor": {"replicas": 3, "podDisruptionBudget": {"enabled": False}},
    },
    "extra-arguments": {
        "frontend": {"extraArgs": ["--max-queue-size=10", "--log-format=json"], "extraEnv": _ENV},
        "executor": {
            "extraArgs": ["--block-size=32", '--hf-overrides={"rope_theta": 1}', "--no-enable-prefix-caching"],
            "extraEnv": _ENV,
            "dtype": "bfloat16",
            "maxModelLen": 1_048_576,  # as a floating-point number, Helm would write 1.048576e+06
            "maxNumSeqs": 32,
        },
    },
    "placement": {"frontend": _PLACEMENT, "executor": _PLACEMENT},
    "other-ports": {
        "frontend": {"port": 8080, "service": {"type": "LoadBalancer", "annotations": {"internal": "true"}}},
        "executor": {"port": 9090},
    },
    "long-drain": {
        "frontend": {"drain": {"delaySeconds": 30, "graceSeconds": 3600, "marginSeconds": 20}},
        "executor": {"drain": {"delaySeconds": 1, "graceSeconds": 3600}, "startupSeconds": 7201},
    },
    "no-drain": {"frontend": {"drain": {"delaySeconds": 0, "graceSeconds": 0}}},
    "private-registry": {
        "image": {"registry": "registry.example.com:5000/team", "pullPolicy": "Always", "pullSecrets": ["pull", "123"]},
        "frontend": {"image": {"tag": "1.2.3"}},
        "executor": {"image": {"tag": "1.2.3", "digest": f"sha256:{'0a' * 32}"}},
    },
    "own-service-accounts": {
        "frontend": {"serviceAccount": {"create": False, "name": "front"}},
        "executor": {"serviceAccount": {"create": False}},
    },
    "annotated-service-accounts": {"executor": {"serviceAccount": {"name": "gpu", "annotations": {"role": "reader"}}}},
    "own-name": {"fullnameOverride": "completions"},
    "part-of-another-chart": {"global": {"storageClass": "fast"}},
}


@functools.cache
def chart() -> Any:
    """The chart as Helm loads it."""
    return helm.Chart.load(CHART)


def render(values: dict[str, Any] | None = None, *, name: str = "test", namespace: str = NAMESPACE) -> list[Object]:
    """The objects that an install makes. Raises helm.HelmError where Helm does."""
    objects: list[Object] = []
    for path, text in chart().render(values or {}, name=name, namespace=namespace).items():
        if path.endswith((".yaml", ".yml")):
            objects += [item for item in yaml.load_all(text, Loader=_UniqueKeys) if item]
    return objects


def notes(values: dict[str, Any] | None = None, *, name: str = "test", namespace: str = NAMESPACE) -> str:
    """What an install prints."""
    return chart().render(values or {}, name=name, namespace=namespace)[f"{chart().name}/templates/NOTES.txt"]


@functools.cache
def _case(name: str) -> list[Object]:
    return render(CASES[name])


def case(name: str) -> list[Object]:
    """The objects of a case of the matrix."""
    return copy.deepcopy(_case(name))


def merged(name: str) -> dict[str, Any]:
    """The values of a case, defaults filled in."""
    return chart().merge_values(CASES[name])


def find(objects: list[Object], kind: str, component: str) -> Object:
    """The one object of this kind in a tier."""
    (found,) = [item for item in objects if item["kind"] == kind and component_of(item) == component]
    return found


def component_of(item: Object) -> str:
    """The tier that an object belongs to."""
    return item["metadata"]["labels"]["app.kubernetes.io/component"]


def pod(objects: list[Object], component: str) -> Object:
    """A tier's pod template."""
    return find(objects, "Deployment", component)["spec"]["template"]


def container(objects: list[Object], component: str) -> Object:
    """A tier's one container."""
    (found,) = pod(objects, component)["spec"]["containers"]
    return found


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, which Kubernetes clients do and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys} at {node.start_mark}"
        return super().construct_mapping(node, deep)
