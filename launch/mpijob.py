"""Kubernetes: the job as an MPIJob (kubeflow.org/v2beta1) for the MPI operator."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import LaunchError
from .mpi import FAMILIES
from .values import KUBERNETES_NAME, check

HOSTFILE = "/etc/mpi/hostfile"  # the operator writes it
# The image's own user and its sshd, as the Dockerfile makes them.
HOME, USER_ID, SSH_PORT = "/home/ddpbp", 1000, 2222


def manifest(options: argparse.Namespace, launch: Sequence[str]) -> dict[str, Any]:
    """Return the MPIJob of a training.

    Parameters
    ----------
    options : argparse.Namespace
        The options of the command line.
    launch : sequence of str
        The launcher's own command inside its pod.

    Raises
    ------
    LaunchError
        Names the option that Kubernetes would not accept.
    """
    _check(options)
    sshd = ["/usr/sbin/sshd", "-De", "-f", f"{HOME}/.sshd_config"]
    ready = {"tcpSocket": {"port": SSH_PORT}, "initialDelaySeconds": 2}
    launcher = _pod(options, "launcher", launch, cpu=1, memory="512Mi")
    worker = _pod(options, "worker", sshd, options.ppn, options.memory, readinessProbe=ready)
    return {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": {"name": options.job_name},
        "spec": {
            "slotsPerWorker": options.ppn,
            "mpiImplementation": FAMILIES[options.mpi].kubernetes,
            "sshAuthMountPath": f"{HOME}/.ssh",
            "launcherCreationPolicy": "WaitForWorkersReady",
            "runPolicy": {
                "cleanPodPolicy": "Running",
                "backoffLimit": 6 if options.requeue else 0,
                "activeDeadlineSeconds": options.time,
            },
            "mpiReplicaSpecs": {
                "Launcher": {"replicas": 1, "restartPolicy": "Never", "template": launcher},
                "Worker": {"replicas": options.nodes, "template": worker},
            },
        },
    }


def _check(options: argparse.Namespace) -> None:
    if not options.image:
        raise LaunchError("--kubernetes needs --image NAME, built from the Dockerfile")
    check("--job-name", options.job_name, KUBERNETES_NAME)


def _pod(
    options: argparse.Namespace,
    role: str,
    command: Sequence[str],
    cpu: int,
    memory: str,
    **more: Any,
) -> dict[str, Any]:
    """Return the pod template of the launcher or of a worker; `more` goes into its container."""
    claim, _, path = (options.volume or "").partition(":")
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": options.shm_size}}
    ]
    if claim:
        mounts.append({"name": "runs", "mountPath": path})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
    container = {
        "name": role,
        "image": options.image,
        "command": list(command),
        "workingDir": path or HOME,
        "resources": {kind: {"cpu": cpu, "memory": memory} for kind in ("requests", "limits")},
        "securityContext": {"runAsUser": USER_ID},
        "volumeMounts": mounts,
        **more,
    }
    return {
        "spec": {
            "terminationGracePeriodSeconds": options.grace,
            "containers": [container],
            "volumes": volumes,
        }
    }


def to_yaml(value: Any) -> str:
    """Write nested dictionaries, lists, strings and numbers as YAML; a string as one of JSON."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in items:
        head = "-" if key is None else f"{key}:"
        if not isinstance(item, dict | list):
            yield f"{head} {json.dumps(item, ensure_ascii=False)}"
        elif key is None:  # a list item starts on the line of its dash
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in _lines(item))
