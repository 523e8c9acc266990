"""Workers as JobSets of Kubernetes, one TPU slice each. Every JobSet restarts on its own; Kueue admits them.

A worker's exit status says what becomes of its JobSet: 0 completes it, 1 (a cell failed) and 2 (bad input) fail it,
since another start would change nothing; 42, 75 and whatever kills a host start all of its hosts again.
"""

import re
import shutil
import subprocess
from typing import Any

import yaml

from sd3_jax.errors import RunFailed, UserError
from sd3_jax.hardware import Hardware
from sd3_jax.sweep.submission import (
    SWEEP_MOUNT,
    Submission,
    command,
    files,
    has_bucket,
    image,
    names,
    parts,
    runs_dir,
    tpu,
)

_GIVE_UP = (1, 2)
_SAVE_SECONDS = 120
_TPU_PORTS = (8471, 8431)  # between the hosts of a slice; metrics


def manifests(submission: Submission) -> list[dict[str, Any]]:
    """The ConfigMap of the sweep's files, where the image lacks them, and one JobSet for each worker.

    Raises UserError where hardware, image or volume is missing or impossible.
    """
    slice_, container_image = tpu(submission), image(submission)
    if submission.volume is None and not has_bucket(submission):
        raise UserError(
            "--volume: is missing; name the PersistentVolumeClaim that keeps the runs when pods are gone, "
            "or set checkpoint_root: gs://... in the sweep"
        )
    for option, name in (("--volume", submission.volume), ("--queue", submission.queue)):
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
            raise UserError(f"{option}: {name!r} is not a name of Kubernetes: lower case, digits, - and .")
    carried = files(submission)
    config_map = f"{names(submission)[0].rpartition('-')[0]}-sweep"
    documents = []
    for name, part in zip(names(submission), parts(submission, submission.volume is not None), strict=True):
        pod = _pod(submission, slice_, container_image, config_map if carried else None, part)
        documents.append(_job_set(name, submission, slice_, pod))
    if not carried:
        return documents
    texts = {f"file-{number}": path.read_text(encoding="utf-8") for number, path in enumerate(carried)}
    kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": config_map}, "data": texts}
    return [kept, *documents]


def to_yaml(submission: Submission) -> str:
    """The manifests as one file for ``kubectl apply -f``."""
    return yaml.dump_all(manifests(submission), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


class _Dumper(yaml.SafeDumper):
    """The safe dumper without anchors: each JobSet is whole by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def submit(submission: Submission) -> str:
    """Apply the manifests and return what kubectl says. Raises UserError without kubectl, RunFailed if it fails."""
    text = to_yaml(submission)
    if shutil.which("kubectl") is None:
        raise UserError("--launcher jobset: there is no kubectl here; --dry-run prints what to apply elsewhere")
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"kubectl apply: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _job_set(name: str, submission: Submission, slice_: Hardware, pod: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if submission.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": submission.queue}
    if slice_.hosts > 1:  # the node pool is the slice: nobody else's pods, and all of ours, on one
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    gives_up = {"containerName": "worker", "operator": "In", "values": list(_GIVE_UP)}
    job = {
        "parallelism": slice_.hosts,
        "completions": slice_.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one host that fails is the slice that fails
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": gives_up}]},
        "template": {"spec": pod},
    }
    # A rule for what the policy above has failed; any other failure restarts the JobSet.
    rule = {"name": "giveUp", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": submission.restarts, "rules": [rule]},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(
    submission: Submission, slice_: Hardware, container_image: str, config_map: str | None, part: str | None
) -> dict[str, Any]:
    """The pod of one host; every host runs the same command. Without a volume its directory is gone with it."""
    kept = {"persistentVolumeClaim": {"claimName": submission.volume}} if submission.volume else {"emptyDir": {}}
    volumes: list[dict[str, Any]] = [{"name": "runs", **kept}]
    mounts: list[dict[str, Any]] = [{"name": "runs", "mountPath": str(runs_dir(submission).parent)}]
    if config_map:
        items = [{"key": f"file-{number}", "path": path.name} for number, path in enumerate(files(submission))]
        volumes.append({"name": "sweep", "configMap": {"name": config_map, "items": items}})
        mounts.append({"name": "sweep", "mountPath": SWEEP_MOUNT})
    container: dict[str, Any] = {
        "name": "worker",
        "image": container_image,
        "command": command(submission, part),
        "ports": [{"containerPort": port} for port in _TPU_PORTS],
        "resources": {"limits": {"google.com/tpu": slice_.chips_per_host}},
        "volumeMounts": mounts,
    }
    if slice_.hosts > 1:
        container["env"] = [{"name": "SD3_JAX_HOSTS", "value": str(slice_.hosts)}]
    node = {
        "cloud.google.com/gke-tpu-accelerator": slice_.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": slice_.topology,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _SAVE_SECONDS,
        "nodeSelector": node,
        "containers": [container],
        "volumes": volumes,
    }
    if submission.spot:
        node["cloud.google.com/gke-spot"] = "true"
        toleration = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        spec["tolerations"] = [toleration]
    return spec
