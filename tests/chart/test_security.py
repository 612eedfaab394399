"""Pods meet the restricted Pod Security Standard, hold no credentials, and can write only where they must."""

from __future__ import annotations

import json

import pytest

from tests.chart.rendering import CASES, TIERS, case, container, merged, pod, render

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


@pytest.fixture(params=[(name, tier) for name in CASES for tier in TIERS], ids="-".join)
def of_pod(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A case and a tier."""
    return request.param


def test_pods_meet_the_restricted_standard(of_pod: tuple[str, str]) -> None:
    objects, tier = case(of_pod[0]), of_pod[1]
    spec, its_container = pod(objects, tier)["spec"], container(objects, tier)
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert its_container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in its_container["ports"])
    for volume in spec["volumes"]:
        assert (volume.keys() - {"name"}) < RESTRICTED_VOLUMES


def test_pods_can_write_where_programs_expect_to(of_pod: tuple[str, str]) -> None:
    objects, tier = case(of_pod[0]), of_pod[1]
    writable = {mount["mountPath"] for mount in container(objects, tier)["volumeMounts"] if not mount.get("readOnly")}
    literal = {item["name"]: item.get("value") for item in container(objects, tier)["env"]}
    assert {"/tmp", literal["HOME"], literal["HF_HOME"]} <= writable


def test_pods_hold_no_token_of_the_cluster(of_pod: tuple[str, str]) -> None:
    name, tier = of_pod
    spec = pod(case(name), tier)["spec"]
    assert spec["automountServiceAccountToken"] is False
    accounts = {
        item["metadata"]["name"]: item["automountServiceAccountToken"]
        for item in case(name)
        if item["kind"] == "ServiceAccount"
    }
    assert not any(accounts.values())
    wanted = merged(name)[tier]["serviceAccount"]
    assert spec["serviceAccountName"] in (accounts if wanted["create"] else {wanted["name"] or "default"})


def test_no_other_service_can_change_a_setting(of_pod: tuple[str, str]) -> None:
    # With service links, a Service named "forebay" sets FOREBAY_PORT=tcp://… in every pod of its namespace.
    assert pod(case(of_pod[0]), of_pod[1])["spec"]["enableServiceLinks"] is False


def test_nothing_is_granted_and_no_secret_is_made() -> None:
    kinds = {item["kind"] for name in CASES for item in case(name)}
    assert kinds == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}


def test_values_are_text_and_not_templates() -> None:
    marker = "{{ .Release.Name }}"
    values = {"frontend": {"podAnnotations": {"note": marker}, "extraEnv": [{"name": "X", "value": 'a: "b"\n- c'}]}}
    objects = render(values)
    assert marker in json.dumps(pod(objects, "frontend"))
    assert {"name": "X", "value": 'a: "b"\n- c'} in container(objects, "frontend")["env"]
