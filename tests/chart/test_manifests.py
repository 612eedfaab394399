"""Every case of the matrix gives objects that Kubernetes takes, and the objects that it should give."""

from __future__ import annotations

import functools
import json

import pytest

from tests.chart.rendering import (
    CASES,
    CHART,
    NAMESPACE,
    TIERS,
    case,
    chart,
    component_of,
    find,
    helm,
    merged,
    pod,
    render,
)

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed (it comes with forebay[test])"
)
from kubernetes_validate import utils as kubernetes_schemas  # noqa: E402

VERSIONS = ("1.29", "1.33", kubernetes_schemas.major_minor(kubernetes_validate.latest_version()))

# Parsing the schemas of a version anew for every object would take most of the tests' time.
kubernetes_schemas.schema_contents = functools.cache(kubernetes_schemas.schema_contents)


@functools.cache
def _validate(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    for item in case(name):
        _validate(json.dumps(item, sort_keys=True), version)


def test_validation_is_strict() -> None:
    service = find(case("defaults"), "Service", "frontend")
    service["spec"]["ports"][0]["appProtokoll"] = "kubernetes.io/h2c"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", CASES)
def test_helm_lint_finds_nothing(name: str) -> None:
    report = helm.lint(CHART, CASES[name], strict=True)
    findings = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
    assert not findings and not report["errors"]


@pytest.mark.parametrize("name", CASES)
def test_each_tier_has_its_objects_and_no_others(name: str) -> None:
    objects = case(name)
    for tier in TIERS:
        values = merged(name)[tier]
        expected = {"Deployment": 1, "Service": 1, "ServiceAccount": int(values["serviceAccount"]["create"])}
        expected["PodDisruptionBudget"] = int(values["podDisruptionBudget"]["enabled"] and values["replicas"] > 1)
        kinds = [item["kind"] for item in objects if component_of(item) == tier]
        assert sorted(kinds) == sorted(kind for kind, count in expected.items() for _ in range(count))


@pytest.mark.parametrize("name", CASES)
def test_objects_carry_the_recommended_labels_and_their_namespace(name: str) -> None:
    for item in case(name):
        labels = item["metadata"]["labels"]
        assert {
            "app.kubernetes.io/name": "forebay",
            "app.kubernetes.io/instance": "test",
            "app.kubernetes.io/version": chart().metadata["appVersion"],
            "app.kubernetes.io/part-of": "forebay",
            "app.kubernetes.io/managed-by": "Helm",
            "helm.sh/chart": f"forebay-{chart().version}",
        }.items() <= labels.items()
        assert item["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("name", CASES)
def test_selectors_find_the_pods_of_one_tier_of_one_release(name: str) -> None:
    objects = case(name)
    others = {tier: pod(render(CASES[name], name="other"), tier)["metadata"]["labels"] for tier in TIERS}
    for item in objects:
        if item["kind"] in ("Deployment", "Service", "PodDisruptionBudget"):
            selector = item["spec"]["selector"]
            selector = selector.get("matchLabels", selector).items()
            for tier in TIERS:
                ours = pod(objects, tier)["metadata"]["labels"].items()
                assert (selector <= ours) == (tier == component_of(item))
                assert not selector <= others[tier].items()


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("llm", "llm-forebay-frontend"),
        ("forebay", "forebay-frontend"),
        ("my-forebay", "my-forebay-frontend"),
        ("a" * 53, "a" * 53 + "-frontend"),
        ("1234", "1234-forebay-frontend"),
    ],
)
def test_names_come_from_the_release_and_fit_a_dns_label(release: str, expected: str) -> None:
    objects = render(name=release, namespace="42")  # a number for YAML, unless it is quoted
    assert find(objects, "Service", "frontend")["metadata"]["name"] == expected
    assert all(len(item["metadata"]["name"]) <= 63 for item in objects)
    for item in objects:
        _validate(json.dumps(item, sort_keys=True), VERSIONS[-1])


def test_a_new_chart_version_alone_restarts_no_pod() -> None:
    for tier in TIERS:
        assert chart().version in find(case("defaults"), "Deployment", tier)["metadata"]["labels"]["helm.sh/chart"]
        assert "helm.sh/chart" not in pod(case("defaults"), tier)["metadata"]["labels"]


def test_spread_constraints_select_their_tier_unless_they_say_otherwise() -> None:
    for tier in TIERS:
        template = pod(case("placement"), tier)
        first, second = template["spec"]["topologySpreadConstraints"]
        assert first["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert second["labelSelector"] == {"matchLabels": {"of": "mine"}}


def test_a_release_without_a_model_is_refused() -> None:
    with pytest.raises(helm.HelmRenderError, match=r"set model\.id, or model\.existingClaim"):
        render({"model": {"id": ""}})
