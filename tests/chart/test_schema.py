"""values.schema.json is closed: a key that is unknown and a value of the wrong type are refused, wherever they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CASES, CHART, chart, helm, render
from tests.chart.values_table import leaves

VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DIGEST = "sha256:" + "0" * 64


def _at(path: str, value: Any) -> dict[str, Any]:
    """Values with one value at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _maps(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted paths of the maps whose keys the chart names."""
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("requests", "limits"):
            yield f"{prefix}{key}"
            yield from _maps(value, f"{prefix}{key}.")


def _refused(values: dict[str, Any]) -> str:
    """Why Helm refuses the values."""
    with pytest.raises(helm.HelmValuesError) as error:
        chart().validate_schema(values)
    with pytest.raises(helm.HelmError):
        render(values)
    return str(error.value)


def test_helm_loads_the_schema() -> None:
    assert chart().schema == SCHEMA


@pytest.mark.parametrize("path", ["", *_maps(VALUES)])
def test_unknown_key_is_refused(path: str) -> None:
    assert "replicaz" in _refused(_at(f"{path}.replicaz".removeprefix("."), 1))


@pytest.mark.parametrize("path", leaves(VALUES))
def test_wrong_type_is_refused(path: str) -> None:
    _refused(_at(path, {"a": {"map": []}}))
    _refused(_at(path, [["a list"]]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("frontend.replicas", "2"),
        ("frontend.replicas", 1.5),
        ("frontend.replicas", -1),
        ("frontend.port", "50051"),
        ("frontend.port", 70_000),
        ("frontend.service.type", "ExternalName"),
        ("frontend.image.tag", "latest"),
        ("frontend.image.repository", "repo:tag"),
        ("frontend.image.digest", "0" * 64),
        ("frontend.drain.graceSeconds", -1),
        ("frontend.drain.graceSeconds", "60s"),
        ("frontend.drain.marginSeconds", 0),
        ("frontend.resources", {"limit": {"memory": "1Gi"}}),
        ("frontend.resources", {"limits": {"memory": "1 GiB"}}),
        ("frontend.cache.sizeLimit", "much"),
        ("frontend.podDisruptionBudget.maxUnavailable", "half"),
        ("frontend.rollingUpdate", {"maxSurge": 0, "maxUnavailable": 0}),
        ("frontend.extraArgs", ["--port=1"]),
        ("frontend.extraArgs", ["--executors", "a:1"]),
        ("frontend.extraArgs", ["another-model"]),
        ("frontend.extraArgs", "--log-format=json"),
        ("frontend.extraEnv", {"NAME": "value"}),
        ("frontend.extraEnv", [{"name": "A", "value": 1}]),
        ("frontend.extraEnv", [{"value": "without a name"}]),
        ("frontend.extraEnv", [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]),
        ("frontend.extraEnv", [{"name": "A", "valueFrom": {"secretRef": {"name": "x"}}}]),
        ("frontend.podLabels", {"app.kubernetes.io/component": "executor"}),
        ("frontend.nodeSelector", {"gpu": True}),
        ("frontend.tolerations", [{"key": "gpu", "effekt": "NoSchedule"}]),
        ("frontend.tolerations", [{"key": "gpu", "effect": "Never"}]),
        ("frontend.affinity", {"nodeAfinity": {}}),
        ("frontend.affinity", {"nodeAffinity": {"requiredDuringScheduling": {}}}),
        ("frontend.topologySpreadConstraints", [{"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]),
        ("frontend.serviceAccount.create", "yes"),
        ("executor.gpu.count", 2),
        ("executor.gpu.resource", "gpu"),
        ("executor.dtype", "fp16"),
        ("executor.maxModelLen", "8k"),
        ("executor.extraArgs", ["--listen=:1"]),
        ("executor.extraArgs", ["--device=cpu"]),
        ("executor.runtimeClassName", "Nvidia Runtime"),
        ("executor.service", {"type": "LoadBalancer"}),
        ("model.id", "https://huggingface.co/org/model"),
        ("model.id", "--dtype=float16"),
        ("model.path", "../../etc"),
        ("model.path", "/absolute"),
        ("model.servedNames", ["two words"]),
        ("model.servedNames", "one"),
        ("model.hubToken", {"token": "hf_secret"}),
        ("model.hubToken", "hf_secret"),
        ("image.pullPolicy", "Sometimes"),
        ("image.pullSecrets", [{"name": "pull"}]),
        ("image.registry", "https://registry.example.com"),
        ("fullnameOverride", "Upper"),
        ("tls", {"enabled": True}),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else json.dumps(value)[:40],
)
def test_mistake_is_refused(path: str, value: Any) -> None:
    _refused(_at(path, value))


@pytest.mark.parametrize("name", CASES)
def test_right_values_are_taken(name: str) -> None:
    chart().validate_schema(CASES[name])


@pytest.mark.parametrize("image", [{"tag": "v1.0"}, {"digest": DIGEST}, {"repository": "team/sub/forebay_x-y"}])
def test_images_can_be_named_in_every_usual_way(image: dict[str, str]) -> None:
    chart().validate_schema({"frontend": {"image": image}})


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _objects(value, f"{path}/{index}")


def test_every_object_in_the_schema_is_closed() -> None:
    for path, schema in _objects(SCHEMA):
        if path == "/properties/global":  # what a parent chart writes there is not ours to judge
            continue
        extra = schema.get("additionalProperties")
        named = "properties" in schema
        assert extra is False if named else isinstance(extra, dict), f"{path} takes any key"


def test_schema_and_values_name_the_same_keys() -> None:
    def paths(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        for key, value in schema.get("properties", {}).items():
            yield f"{prefix}{key}"
            yield from paths(value, f"{prefix}{key}.")

    def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    def of_the_chart(found: Iterator[str]) -> set[str]:
        """Without what Kubernetes names."""
        return {path for path in found if not re.search(r"^global|\.(affinity|requests|limits)\.", path)}

    assert of_the_chart(paths(SCHEMA)) == of_the_chart(keys(VALUES))
