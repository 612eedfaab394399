"""Ports, probes, names, models and times in the chart agree with each other and with the servers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CASES, NAMESPACE, TIERS, case, chart, container, find, merged, notes, pod, render

PROTOS = Path(__file__).parents[2] / "protos"

TRAFFIC = {"frontend": "forebay.v1.GenerationService", "executor": "forebay.executor.v1.ExecutorService"}
ALIVE = {"frontend": "liveness", "executor": ""}

EVERY_CASE = pytest.mark.parametrize("name", CASES)
EACH_TIER = pytest.mark.parametrize("tier", TIERS)


def _argument(objects: list[dict[str, Any]], tier: str, flag: str) -> str | None:
    """What a container is given for a flag."""
    found = [arg.partition("=")[2] for arg in container(objects, tier)["args"] if arg.startswith(f"{flag}=")]
    assert len(found) <= 1, f"{flag} is given more than once"
    return found[0] if found else None


def _environment(objects: list[dict[str, Any]], tier: str) -> dict[str, dict[str, Any]]:
    env = container(objects, tier)["env"]
    assert len({item["name"] for item in env}) == len(env)
    return {item["name"]: item for item in env}


def _volume(objects: list[dict[str, Any]], tier: str, path: str) -> dict[str, Any] | None:
    """What is mounted at a path."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container(objects, tier)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(objects, tier)["spec"]["volumes"]}
    assert sorted(mounts.values()) == sorted(volumes), "every volume is mounted, and every mount is a volume's"
    return volumes[mounts[path]] if path in mounts else None


def _services_in_protos() -> set[str]:
    names = set()
    for path in PROTOS.rglob("*.proto"):
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)[1]
        names |= {f"{package}.{service}" for service in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return names


@EVERY_CASE
@EACH_TIER
def test_services_probes_and_flags_use_the_port_of_the_container(name: str, tier: str) -> None:
    objects = case(name)
    (port,) = container(objects, tier)["ports"]
    assert port == {"name": "grpc", "containerPort": merged(name)[tier]["port"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(objects, tier)[probe]["grpc"]["port"] == port["containerPort"]
    (exposed,) = find(objects, "Service", tier)["spec"]["ports"]
    assert exposed["targetPort"] == port["name"] == exposed["name"]
    assert exposed["port"] == port["containerPort"]  # a headless Service maps no ports
    assert exposed["appProtocol"] == "kubernetes.io/h2c"
    listening = {"frontend": _argument(objects, tier, "--port"), "executor": _argument(objects, tier, "--listen")}[tier]
    assert listening.rpartition(":")[2] == str(port["containerPort"])


@EVERY_CASE
def test_pods_listen_on_all_addresses(name: str) -> None:
    assert _argument(case(name), "frontend", "--host") == "0.0.0.0"
    assert _argument(case(name), "executor", "--listen").startswith("0.0.0.0:")


@EVERY_CASE
@EACH_TIER
def test_readiness_is_the_health_of_the_service_and_liveness_is_not(name: str, tier: str) -> None:
    spec = container(case(name), tier)
    assert spec["readinessProbe"]["grpc"]["service"] == TRAFFIC[tier]
    # Neither the loss of all executors nor an unfinished start may restart a pod.
    assert spec["livenessProbe"]["grpc"]["service"] == ALIVE[tier]
    assert spec["startupProbe"]["grpc"]["service"] == ALIVE[tier]


def test_probed_services_are_in_the_protos() -> None:
    assert set(TRAFFIC.values()) <= _services_in_protos()


def test_the_frontend_knows_the_name_that_the_chart_probes_for_liveness() -> None:
    server = pytest.importorskip("frontend.server", reason="the frontend cannot be imported", exc_type=ImportError)
    assert ALIVE["frontend"] == server.LIVENESS
    assert TRAFFIC["frontend"] in server.SERVICE_NAMES


@EVERY_CASE
@EACH_TIER
def test_startup_may_take_as_long_as_the_values_say(name: str, tier: str) -> None:
    startup_seconds = merged(name)[tier]["startupSeconds"]
    probe = container(case(name), tier)["startupProbe"]
    assert startup_seconds <= probe["periodSeconds"] * probe["failureThreshold"] < startup_seconds + 5
    assert find(case(name), "Deployment", tier)["spec"]["progressDeadlineSeconds"] > startup_seconds


@EVERY_CASE
@EACH_TIER
def test_the_grace_period_covers_delay_drain_and_exit(name: str, tier: str) -> None:
    objects, drain = case(name), merged(name)[tier]["drain"]
    assert _argument(objects, tier, "--drain-grace-s") == str(drain["graceSeconds"])
    hook = container(objects, tier).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    assert hook == (["sleep", str(drain["delaySeconds"])] if drain["delaySeconds"] else None)
    grace_period = pod(objects, tier)["spec"]["terminationGracePeriodSeconds"]
    assert grace_period == drain["delaySeconds"] + drain["graceSeconds"] + drain["marginSeconds"]
    assert drain["marginSeconds"] >= 2


@EVERY_CASE
def test_frontends_dial_every_executor_that_is_ready(name: str) -> None:
    objects = case(name)
    service = find(objects, "Service", "executor")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is False
    (port,) = service["spec"]["ports"]
    expected = f"dns:///{service['metadata']['name']}.{NAMESPACE}.svc:{port['port']}"
    assert _argument(objects, "frontend", "--executors") == expected


@EVERY_CASE
def test_both_tiers_serve_the_same_model(name: str) -> None:
    objects, model = case(name), merged(name)["model"]
    for tier in TIERS:
        positional = [arg for arg in container(objects, tier)["args"] if not arg.startswith("--")]
        mounted = _volume(objects, tier, "/model")
        if model["existingClaim"]:
            assert positional == ["/model/" + model["path"] if model["path"] else "/model"]
            assert mounted["persistentVolumeClaim"] == {"claimName": model["existingClaim"], "readOnly": True}
            assert _argument(objects, tier, "--revision") is None
            assert _environment(objects, tier)["HF_HUB_OFFLINE"]["value"] == "1"
        else:
            assert positional == [model["id"]]
            assert mounted is None
            assert _argument(objects, tier, "--revision") == (model["revision"] or None)
            assert "HF_HUB_OFFLINE" not in _environment(objects, tier)
    assert _argument(objects, "frontend", "--served-model-name") == (",".join(model["servedNames"]) or None)


@EVERY_CASE
def test_the_hub_token_comes_from_a_secret_only(name: str) -> None:
    token = merged(name)["model"]["hubToken"]
    for tier in TIERS:
        found = _environment(case(name), tier).get("HF_TOKEN")
        if token["existingSecret"]:
            reference = {"name": token["existingSecret"], "key": token["key"]}
            assert found == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}
        else:
            assert found is None


@EVERY_CASE
@EACH_TIER
def test_downloads_go_to_the_cache_volume(name: str, tier: str) -> None:
    cache = merged(name)[tier]["cache"]
    volume = _volume(case(name), tier, _environment(case(name), tier)["HF_HOME"]["value"])
    if cache["existingClaim"]:
        assert volume["persistentVolumeClaim"] == {"claimName": cache["existingClaim"]}
    else:
        assert volume["emptyDir"] == ({"sizeLimit": cache["sizeLimit"]} if cache["sizeLimit"] else {})


@EVERY_CASE
def test_an_executor_gets_the_device_that_it_is_told_to_use(name: str) -> None:
    objects, values = case(name), merged(name)["executor"]
    limits = container(objects, "executor")["resources"]["limits"]
    threads = _environment(objects, "executor").get("FOREBAY_NUM_THREADS")
    if values["gpu"]["count"]:
        assert limits == {**values["resources"]["limits"], values["gpu"]["resource"]: values["gpu"]["count"]}
        assert _argument(objects, "executor", "--device") == "cuda"
        assert threads is None
    else:
        assert limits == values["resources"]["limits"]
        assert _argument(objects, "executor", "--device") == "cpu"
        assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert _volume(objects, "executor", "/dev/shm")["emptyDir"]["medium"] == "Memory"
    assert "gpu" not in json.dumps(container(objects, "frontend")["resources"])


@EVERY_CASE
@EACH_TIER
def test_images_have_a_tag_or_a_digest(name: str, tier: str) -> None:
    values = merged(name)
    image, registry = values[tier]["image"], values["image"]["registry"]
    repository = f"{registry}/{image['repository']}" if registry else image["repository"]
    version = f"@{image['digest']}" if image["digest"] else f":{image['tag'] or chart().metadata['appVersion']}"
    assert container(case(name), tier)["image"] == repository + version


def test_environment_of_the_operator_comes_last_and_wins() -> None:
    values = {"frontend": {"extraEnv": [{"name": "HOME", "value": "/cache"}]}}
    named = [item["value"] for item in container(render(values), "frontend")["env"] if item["name"] == "HOME"]
    assert named[-1] == "/cache"


@EVERY_CASE
def test_notes_name_what_was_installed(name: str) -> None:
    objects, text = case(name), notes(CASES[name])
    for tier in TIERS:
        assert f"deployment/{find(objects, 'Deployment', tier)['metadata']['name']} " in text.replace("\n", " ")
    service = find(objects, "Service", "frontend")
    port = service["spec"]["ports"][0]["port"]
    assert f"port-forward service/{service['metadata']['name']} {port}:{port} &" in text
    assert f"forebay generate --server localhost:{port} " in text
    assert f"{service['metadata']['name']}.{NAMESPACE}.svc:{port} without TLS" in text


def test_the_call_in_the_notes_is_one_that_the_api_has() -> None:
    generation = pytest.importorskip("forebay.v1.generation_pb2", reason="protobuf is not installed")
    from google.protobuf import json_format

    text = notes()
    service, method = re.search(r"http://localhost:\d+/([\w.]+)/(\w+)", text).groups()
    descriptor = generation.DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
    assert descriptor.full_name == service
    assert descriptor.methods_by_name[method].input_type.full_name == "forebay.v1.StreamGenerateRequest"
    request = re.search(r"-d '(.*)'", text)[1]
    assert json_format.Parse(request, generation.StreamGenerateRequest()).prompt.text == "Once upon a time"
