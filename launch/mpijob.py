"""Kubernetes: the job as an MPIJob (kubeflow.org/v2beta1) for the MPI operator."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hosts import LaunchError

HOSTFILE = "/etc/mpi/hostfile"  # the operator writes it
IMPLEMENTATIONS = {"mpich": "MPICH", "openmpi": "OpenMPI", "intel": "Intel"}
# The image's own user and its sshd, as the Dockerfile makes them.
HOME, USER_ID, SSH_PORT = "/home/ddpbp", 1000, 2222

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGT]i?)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")


def manifest(given: argparse.Namespace, launch: Sequence[str]) -> dict[str, Any]:
    """Return the MPIJob of a training.

    Parameters
    ----------
    given : argparse.Namespace
        The options.
    launch : sequence of str
        The launcher's own command inside its pod.

    Raises
    ------
    LaunchError
        Names the option that Kubernetes would not take.
    """
    if not given.image:
        raise LaunchError("--kubernetes needs --image NAME, built from the Dockerfile")
    if not _NAME.fullmatch(given.job_name):
        raise LaunchError(f"--job-name {given.job_name}: allowed: lower case, digits and -")
    for option in ("memory", "shm_size"):
        value = getattr(given, option)
        if not _QUANTITY.fullmatch(value):
            raise LaunchError(f"--{option.replace('_', '-')} {value}: allowed: as in 512Mi or 4Gi")
    claim, _, path = (given.volume or "").partition(":")
    if given.volume and not path.startswith("/"):
        raise LaunchError(f"--volume {given.volume}: allowed: CLAIM:/PATH")

    def pod(
        role: str, command: Sequence[str], cpu: int, memory: str, **more: Any
    ) -> dict[str, Any]:
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[dict[str, Any]] = [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": given.shm_size}}
        ]
        if claim:
            mounts.append({"name": "runs", "mountPath": path})
            volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
        container = {
            "name": role,
            "image": given.image,
            "command": list(command),
            "workingDir": path or HOME,
            "resources": {kind: {"cpu": cpu, "memory": memory} for kind in ("requests", "limits")},
            "securityContext": {"runAsUser": USER_ID},
            "volumeMounts": mounts,
            **more,
        }
        return {
            "spec": {
                "terminationGracePeriodSeconds": given.grace,
                "containers": [container],
                "volumes": volumes,
            }
        }

    sshd = ["/usr/sbin/sshd", "-De", "-f", f"{HOME}/.sshd_config"]
    ready = {"tcpSocket": {"port": SSH_PORT}, "initialDelaySeconds": 2}
    return {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": {"name": given.job_name},
        "spec": {
            "slotsPerWorker": given.ppn,
            "mpiImplementation": IMPLEMENTATIONS[given.mpi],
            "sshAuthMountPath": f"{HOME}/.ssh",
            "launcherCreationPolicy": "WaitForWorkersReady",
            "runPolicy": {
                "cleanPodPolicy": "Running",
                "backoffLimit": 6 if given.requeue else 0,
                "activeDeadlineSeconds": given.time,
            },
            "mpiReplicaSpecs": {
                "Launcher": {
                    "replicas": 1,
                    "restartPolicy": "Never",
                    "template": pod("launcher", launch, 1, "512Mi"),
                },
                "Worker": {
                    "replicas": given.nodes,
                    "template": pod("worker", sshd, given.ppn, given.memory, readinessProbe=ready),
                },
            },
        },
    }


def to_yaml(value: Any) -> str:
    """Write dictionaries, lists, texts and numbers as YAML."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in items:
        head = "-" if key is None else f"{key}:"
        if not isinstance(item, dict | list):
            yield f"{head} {_scalar(item)}"
        elif key is None:  # a list item starts on the line of its dash
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in _lines(item))


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./:-]*[\w/]|[A-Za-z]", value)
    words = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
    return value if plain and value.lower() not in words else json.dumps(value)
