"""Kubernetes: manifests against the operator's schemas, and what it makes of them, without kubectl.

An API server can't be had here. So the operator's own functions make the pods of the manifests, and
the commands of those pods run on this machine, in what the container file's lines install.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack

import dask
import jsonschema
import numpy as np
import pytest
import yaml
from distributed import Client, Security

import dasknmf
from dasknmf.cli import main

from .batch_slurm import free_ports
from .conftest import CONFIGS, OPTIONS
from .images import CONTEXT, Image, instructions

FOLDER = CONFIGS / "kubernetes"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
JOB, CLUSTER, SCALER = (MANIFESTS[name] for name in ("job", "cluster", "autoscaler"))
CLUSTERS = {
    "job": (JOB["metadata"]["name"], JOB["spec"]["cluster"]["spec"]),
    "cluster": (CLUSTER["metadata"]["name"], CLUSTER["spec"]),
}
FIT = JOB["spec"]["job"]["spec"]


def pods(name):
    """The pods that a manifest describes."""
    spec = CLUSTERS[name][1]
    return [spec["scheduler"]["spec"], spec["worker"]["spec"], *([FIT] if name == "job" else [])]


@pytest.mark.parametrize("name", CLUSTERS)
def test_names_within_a_manifest_agree(name):
    cluster, spec = CLUSTERS[name]
    service = spec["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == cluster
    (container,) = spec["scheduler"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    address = f"tls://{cluster}-scheduler:{ports['tcp-comm']}"
    for pod in pods(name)[1:]:
        assert address in pod["containers"][0]["args"]


def test_job_and_cluster_can_be_in_one_namespace():
    assert CLUSTERS["job"][0] != CLUSTERS["cluster"][0]
    assert SCALER["spec"]["cluster"] == CLUSTERS["cluster"][0]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_is_nobody_and_sees_the_data_and_the_key(name):
    for pod in pods(name):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsUser"] == 1000
        (container,) = pod["containers"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"data": "/data", "tls": "/tls"}
        assert {volume["name"] for volume in pod["volumes"]} == {"data", "tls"}


def test_the_commands_are_known():
    from distributed.cli import dask_scheduler, dask_worker

    commands = {
        ("dask", "scheduler"): dask_scheduler.main,
        ("dask", "worker"): dask_worker.main,
        ("dasknmf", "fit"): main.commands["fit"],
    }
    for name in CLUSTERS:
        for pod in pods(name):
            args = pod["containers"][0]["args"]
            command = commands[tuple(args[:2])]
            command.make_context(args[1], args[2:])  # raises at what it does not know


def test_the_lines_to_change_are_few():
    marks = {path.name: path.read_text().count("change:") for path in FOLDER.iterdir()}
    assert marks == {"Containerfile": 0, "job.yaml": 3, "cluster.yaml": 2, "autoscaler.yaml": 1}


def test_the_container_file_takes_what_is_there_and_ends_as_nobody():
    found = instructions(FOLDER / "Containerfile")
    for name, argument in found:
        for source in argument.split()[:-1] if name == "COPY" else ():
            assert (CONTEXT / source).exists(), source
    assert ("USER", "1000:1000") in found[-2:]
    assert found[-1] == ("WORKDIR", "/data"), "where the manifests mount the volume"
    given = dict(pair.split("=") for n, a in found if n == "ENV" for pair in a.split())
    tls = {value for name, value in given.items() if "__TLS__" in name}
    assert tls == {"/tls/tls.crt", "/tls/tls.key"}, "as kubectl create secret tls calls them"


# What needs pip.


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """The Python of an environment of its own: the operator's dependencies are not for ours."""
    folder = tmp_path_factory.mktemp("operator")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "dask-kubernetes"]
    subprocess.run(install, env=without_ours(), check=True, timeout=800)
    return python


def without_ours():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def asked(operator, program, given=None):
    """What a program in the operator's environment prints as JSON."""
    done = subprocess.run(
        [operator, "-W", "ignore", "-c", program], input=json.dumps(given), text=True,
        capture_output=True, check=True, timeout=100, env=without_ours(),
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def schemas(operator):
    """Kind → schema of its custom resource, as the operator's chart installs it."""
    files = asked(
        operator,
        "import dask_kubernetes.operator as o, json, pathlib\n"
        "folder = pathlib.Path(o.__file__).parent / 'deployment/helm'\n"
        "print(json.dumps([p.read_text() for p in folder.rglob('crds/*.yaml')]))",
    )
    found = {}
    for crd in map(yaml.safe_load, files):
        (version,) = crd["spec"]["versions"]
        name = f"{crd['spec']['group']}/{version['name']}"
        schema = closed(version["schema"]["openAPIV3Schema"])
        # what Kubernetes itself adds to every object
        schema["properties"] |= {
            "apiVersion": {"const": name},
            "kind": {"const": crd["spec"]["names"]["kind"]},
            "metadata": {"type": "object", "required": ["name"]},
        }
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        found[crd["spec"]["names"]["kind"]] = schema
    return found


def closed(schema):
    """The schema with no other field than those named, as `kubectl apply` takes it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(part) for name, part in schema.items()}
    kept = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not kept:
        found.setdefault("additionalProperties", False)
    return found


def faults(manifest, schema):
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)]


@pytest.mark.cluster
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_one_that_the_operator_takes(name, schemas):
    manifest = MANIFESTS[name]
    assert faults(manifest, schemas[manifest["kind"]]) == []


def objects(tree, path=()):
    """Paths of all mappings whose keys are fields (those of labels and limits are free)."""
    if isinstance(tree, dict) and (not path or path[-1] not in ("selector", "limits", "metadata")):
        yield path
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(part, dict | list):
            yield from objects(part, (*path, key))


@pytest.mark.cluster
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_slip_of_the_pen_is_refused_wherever_it_is(name, schemas):
    """Unknown fields, and values of the wrong type: else the test above says little."""
    manifest = MANIFESTS[name]
    schema = schemas[manifest["kind"]]
    places = list(objects(manifest))
    assert len(places) > (1 if name == "autoscaler" else 30)
    for path in places:
        spoilt = copy.deepcopy(manifest)
        place = spoilt
        for key in path:
            place = place[key]
        place["replicaz"] = 1
        assert any("replicaz" in fault for fault in faults(spoilt, schema)), path
    for path, value in (
        (("spec", "maximum"), "20"),
        (("spec", "worker", "replicas"), "2"),
        (("spec", "cluster", "spec", "worker", "replicas"), "2"),
    ):
        spoilt = copy.deepcopy(manifest)
        place = spoilt
        for key in path[:-1]:
            place = place.get(key, {}) if isinstance(place, dict) else {}
        if path[-1] in place:
            place[path[-1]] = value
            assert faults(spoilt, schema), path


PODS = """
import json, sys
from dask_kubernetes.operator.controller import controller as c
from dask_kubernetes.operator.validation import validate_cluster_name
name, spec, fit, worker = json.load(sys.stdin)
validate_cluster_name(name)
made = {
    "scheduler": c.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, {}),
    "worker": c.build_worker_deployment_spec(
        f"{name}-default", "default", name, worker, spec["worker"]["spec"], {}, {}),
}
made = {part: deployment["spec"]["template"]["spec"] for part, deployment in made.items()}
if fit:
    made["fit"] = c.build_job_pod_spec(name, name, "default", fit, {}, {})["spec"]
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """What the container file makes, its Python a clean virtual environment."""
    return Image(tmp_path_factory.mktemp("image")).build(FOLDER / "Containerfile")


@pytest.fixture
def node(image, operator, pines, tmp_path):
    """Starts the containers of a manifest, as a node of Kubernetes would: by name, gives processes.

    Its paths are those of the image's folder, and its addresses the loopback's.
    """
    data = tmp_path / "data"
    data.mkdir()
    (data / "V.zarr").symlink_to(pines)
    make_key(tmp_path)
    comm, http = free_ports(2)
    environment = {
        name: re.sub("^/tls", str(tmp_path / "tls"), value)
        for name, value in image.environment.items()
    } | {"DASK_ROOT_CONFIG": str(image.at("/etc/dask")), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}

    numbers = itertools.count()
    with ExitStack() as running:

        def start(name, part, more=()):
            cluster, spec = CLUSTERS[name]
            worker = f"{next(numbers):010x}"  # the operator draws them
            made = asked(operator, PODS, [cluster, spec, FIT if name == "job" else None, worker])
            (container,) = made[part]["containers"]
            given = {pair["name"]: pair["value"] for pair in container.get("env", [])}
            args = [re.sub(r"\$\((\w+)\)", lambda m: given[m[1]], a) for a in container["args"]]
            swaps = {f"{cluster}-scheduler:8786": f"127.0.0.1:{comm}", "8786": str(comm)}
            for old, new in (swaps | {":8787": f"127.0.0.1:{http}"}).items():
                args = [arg.replace(old, new) for arg in args]
            return running.enter_context(
                ended(
                    [str(image.at("venv/bin") / args[0]), *args[1:], *more],
                    env={**environment, **given},
                    cwd=data,
                )
            )

        start.data, start.tls, start.environment = data, tmp_path / "tls", environment
        start.comm, start.http = comm, http
        yield start


class ended(subprocess.Popen):  # noqa: N801
    """A process that does not outlive its ``with``."""

    def __exit__(self, *error):
        self.terminate()
        super().__exit__(*error)


def make_key(folder):
    """The lines that the head of job.yaml gives a person, kubectl's as Kubernetes mounts it."""
    head = (FOLDER / "job.yaml").read_text().split("apiVersion")[0].replace("\n#", "\n")
    command = re.search(r"openssl req.*?certificate\.pem$", head, re.DOTALL | re.MULTILINE)
    subprocess.run(command[0], shell=True, check=True, capture_output=True, cwd=folder)
    secret = FIT["volumes"][1]["secret"]["secretName"]
    names = re.search(rf"kubectl create secret tls {secret} --key (\S+) --cert (\S+)", head)
    (folder / "tls").mkdir()
    for name, mounted in zip(names.groups(), ("tls.key", "tls.crt"), strict=True):
        shutil.copy(folder / name, folder / "tls" / mounted)


ON_LOOPBACK = ("--host", "127.0.0.1")  # a pod has an address of its own


@pytest.mark.cluster
@pytest.mark.timeout(1000)
def test_the_pods_of_a_job_give_the_bits_of_threads(node, image):
    node("job", "scheduler", ON_LOOPBACK)
    for _ in range(2):
        node("job", "worker", ON_LOOPBACK)
    fit = node("job", "fit", [option for option in OPTIONS if option not in ("-k", "16")])
    assert fit.wait(300) == 0
    local = [image.at("venv/bin/dasknmf"), "fit", "V.zarr", *OPTIONS, "-o", "local.zarr"]
    subprocess.run(local, check=True, cwd=node.data, env=node.environment, timeout=100)
    one, other = (dasknmf.load(str(node.data / name)) for name in ("nmf.zarr", "local.zarr"))
    np.testing.assert_array_equal(one.components_, other.components_)
    np.testing.assert_array_equal(one.W_, other.W_)
    assert dasknmf.load(str(node.data / "nmf.run")).n_iter_ == one.n_iter_


@pytest.mark.cluster
@pytest.mark.timeout(1000)
def test_a_notebook_reaches_the_cluster_with_the_key_alone_and_the_operator_scales_it(node):
    scheduler = node("cluster", "scheduler", ON_LOOPBACK)
    node("cluster", "worker", ON_LOOPBACK)
    text = (FOLDER / "cluster.yaml").read_text().split("apiVersion")[0].replace("\n#", "\n")
    files = re.search(r"files = (\{.*?\})", text, re.DOTALL)[1]
    security = Security(
        require_encryption=True,
        **{name: str(node.tls.parent / path) for name, path in json.loads(files).items()},
    )
    wait_for(node.comm, scheduler)
    with Client(f"tls://127.0.0.1:{node.comm}", security=security) as client:
        client.wait_for_workers(1, timeout=100)
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["id"] == "dask-default-worker-0000000001", "the name of its deployment"
        for path, said in (("health", "ok"), ("api/v1/adaptive_target", '{"workers": 0}')):
            answer = urllib.request.urlopen(f"http://127.0.0.1:{node.http}/{path}", timeout=30)
            assert answer.read().decode() == said
    with pytest.raises(OSError), dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        Client(f"tcp://127.0.0.1:{node.comm}", timeout=2)


def wait_for(port, process):
    """Until somebody listens, or the process has ended."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 30).close()
        except ConnectionRefusedError:
            assert process.poll() is None, "it ended"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl (kubernetes-client) is absent")
def test_kubectl_makes_the_secret_that_the_pods_mount(tmp_path):
    make_key(tmp_path)
    command = ["kubectl", "create", "secret", "tls", "nmf-tls", "--key", "key.pem"]
    done = subprocess.run(
        [*command, "--cert", "certificate.pem", "--dry-run=client", "-o", "json"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout)["data"].keys() == {"tls.crt", "tls.key"}
