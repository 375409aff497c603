"""The MPIJob for Kubernetes keeps to the schema of its API; its YAML reads back as written."""

from typing import Any

import yaml

from launch import mpijob
from tests.launch.conftest import LAUNCH

EXAMPLE = LAUNCH.with_name("examples") / "mpijob.yaml"

# What the API server accepts as an MPIJob, from its documentation. A type, the allowed
# words, a list of [item], a dictionary of fields ("?" marks those that may be absent).
QUANTITY = (int, str)
POD = {
    "spec": {
        "terminationGracePeriodSeconds": int,
        "containers": [
            {
                "name": str,
                "image": str,
                "command": [str],
                "workingDir": str,
                "resources": {
                    "requests": {"cpu": QUANTITY, "memory": QUANTITY},
                    "limits": {"cpu": QUANTITY, "memory": QUANTITY},
                },
                "securityContext": {"runAsUser": int},
                "volumeMounts": [{"name": str, "mountPath": str}],
                "readinessProbe?": {"tcpSocket": {"port": int}, "initialDelaySeconds": int},
            }
        ],
        "volumes": [
            {
                "name": str,
                "emptyDir?": {"medium": {"Memory", ""}, "sizeLimit": QUANTITY},
                "persistentVolumeClaim?": {"claimName": str},
            }
        ],
    }
}
REPLICAS = {"replicas": int, "restartPolicy?": {"Never", "OnFailure"}, "template": POD}
MPIJOB = {
    "apiVersion": {"kubeflow.org/v2beta1"},
    "kind": {"MPIJob"},
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
        "sshAuthMountPath": str,
        "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
        "runPolicy": {
            "cleanPodPolicy": {"None", "Running", "All"},
            "backoffLimit": int,
            "activeDeadlineSeconds": int,
        },
        "mpiReplicaSpecs": {"Launcher": REPLICAS, "Worker": REPLICAS},
    },
}


def faults(value: Any, schema: Any, path: str = "$") -> list[str]:
    """List where a value is not what the schema says."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{path} = {value!r}"]
    if isinstance(schema, type | tuple):
        return [] if isinstance(value, schema) and value != "" else [f"{path} = {value!r}"]
    if isinstance(schema, list):
        return [f for i, v in enumerate(value) for f in faults(v, schema[0], f"{path}[{i}]")]
    known = {key.rstrip("?"): key for key in schema}
    found = [f"{path}.{key}: unknown" for key in value if key not in known]
    found += [f"{path}.{key}: missing" for key in schema if key[-1] != "?" and key not in value]
    for key in value.keys() & known.keys():
        found += faults(value[key], schema[known[key]], f"{path}.{key}")
    return found


def test_the_mpijob_keeps_to_the_schema():
    job = yaml.safe_load(EXAMPLE.read_text())
    assert faults(job, MPIJOB) == []
    replicas = job["spec"]["mpiReplicaSpecs"]
    assert replicas["Worker"]["replicas"] == 2
    for role in replicas.values():
        pod = role["template"]["spec"]
        mounted = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounted == {"shm": "/dev/shm", "runs": "/runs"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    del job["spec"]["slotsPerWorker"]
    job["spec"]["mpiImplementation"] = "LAM"
    assert faults(job, MPIJOB) == [
        "$.spec.slotsPerWorker: missing",
        "$.spec.mpiImplementation = 'LAM'",
    ]


def test_yaml_reads_back_as_written():
    value = {"a": "no", "b": ["1", 1, "x: y", "", "-n", {"c": [True], "d": "e/f:g"}], "e": "1e3"}
    assert yaml.safe_load(mpijob.to_yaml(value)) == value
