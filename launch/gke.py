"""TPUs on GKE by a JobSet: one Job a slice, one pod a host; a preempted or saved run (status 75) starts again.

    python -m launch.gke --experiment=paper --workdir=gs://BUCKET/paper_7b --accelerator=v5p:4x4x4 \\
        --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/mtp_jax:1 --config.size=7b

prints the plan. --dry_run prints the exact call of kubectl with the manifest, --yes makes it. See launch/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from launch import command, job, tpus
from launch.calls import Call
from launch.command import option
from launch.job import Job

MAX_SLICES = 100  # more digits, and the longest job name would not fit in a pod's
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./:@-]*[A-Za-z0-9]")
_IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where and on what the jobs run; each field is a flag."""

    accelerator: str = option("", "The slice: generation and topology (v5p:4x4x4) or Cloud TPU's name (v5p-128).")
    image: str = option("", "Container image with mtp_jax, its experiments and jax[tpu].")
    slices: int = option(1, "Slices of that shape, with the data centre's network between them; see "
                         "--config.parallel.dcn_mesh.")
    chips_per_host: int = option(0, "Chips of a node of the pool, where it is another machine type; 0: the usual one.")
    context: str = option("", "Cluster, as kubectl calls it; empty: its current context.")
    namespace: str = option("default", "Namespace of the JobSet.")
    python: str = option("python", "The interpreter in the image.")
    spot: bool = option(False, "Run on spot nodes: cheaper, and taken away at half a minute's notice.")
    reservation: str = option("", "Name of the reservation that the nodes come from; empty: any node.")
    queue: str = option("", "Kueue's local queue that admits the JobSet; empty: none.")
    priority_class: str = option("", "Priority class of the pods; empty: the cluster's default.")
    service_account: str = option("", "Kubernetes service account that may read and write the buckets; empty: default.")
    env: tuple[str, ...] = option((), "NAME=VALUE for the run's environment; may be repeated.")
    max_restarts: int = option(10, "How often the JobSet starts again after an error; a preempted or saved run always "
                               "starts again and is not counted.")
    grace_seconds: int = option(300, "Time that a pod has to save after SIGTERM; spot nodes go away earlier.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        for name in ("accelerator", "image"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed; --help says what it is.")
        hosts = tpus.parse(self.accelerator).hosts(self.chips_per_host)
        if not _IMAGE.fullmatch(self.image):
            raise ValueError(f"image={self.image!r} is not the name of a container image such as "
                             "REGION-docker.pkg.dev/PROJECT/REPOSITORY/mtp_jax:1.")
        if not 1 <= self.slices <= MAX_SLICES:
            raise ValueError(f"slices={self.slices} must lie in [1, {MAX_SLICES}].")
        if self.slices > 1 and hosts == 1:
            raise ValueError(f"slices={self.slices}: GKE connects only slices of several hosts, and "
                             f"accelerator={self.accelerator!r} has one; take a larger slice.")
        for name in ("namespace", "reservation", "queue", "priority_class", "service_account"):
            value = getattr(self, name)
            if value and not _LABEL.fullmatch(value):
                raise ValueError(f"{name}={value!r} must be at most 63 letters, digits, hyphens, dots and underscores.")
        if self.spot and self.reservation:
            raise ValueError(f"spot=True and reservation={self.reservation!r} exclude each other; choose one.")
        for name, least in (("max_restarts", 0), ("grace_seconds", 1)):
            if not least <= getattr(self, name) < 2**31:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        job.check_env(self.env)


def submit(jobs: Sequence[Job], options: Options) -> list[Call]:
    """Returns one call a job: it creates a JobSet from a manifest, and fails where one of that name is there.

    Args:
      jobs: each gets slices of its own.
      options: the same for all.

    Raises:
      ValueError: a job or an option cannot be used.
    """
    options.validate()
    job.check_jobs(jobs, bucket=True)
    return [Call((*_kubectl(options), "create", "--filename=-"), stdin=to_yaml(manifest(each, options)))
            for each in jobs]


def status(name: str, options: Options) -> list[Call]:
    """Returns the calls that tell a JobSet's state and where its pods are."""
    return [Call((*_kubectl(options), "get", "jobset", name)),
            Call((*_kubectl(options), "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={name}",
                  "--output=wide"))]


def logs(name: str, options: Options) -> list[Call]:
    """Returns the call that follows the log of the first host."""
    first = (f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0,"
             "batch.kubernetes.io/job-completion-index=0")
    return [Call((*_kubectl(options), "logs", "--follow", "--tail=200", f"--selector={first}", "--container=train"))]


def delete(name: str, options: Options) -> list[Call]:
    """Returns the call that ends a JobSet; the workdir stays."""
    return [Call((*_kubectl(options), "delete", "jobset", name))]


def describe(jobs: Sequence[Job], options: Options) -> str:
    """Returns the plan for a person: what is taken, what it does, what it costs, how it is undone."""
    one = tpus.parse(options.accelerator)
    hosts = one.hosts(options.chips_per_host)
    kind = "spot" if options.spot else f"from reservation {options.reservation}" if options.reservation else "any node"
    lines = [f"Asks for {one.chips * options.slices * len(jobs)} TPU chips ({kind}) in "
             f"{options.context or 'the current context'}, namespace {options.namespace}:"]
    lines += [f"  {each.name}: {options.slices} x {one.name} ({one.chips} chips on {hosts} hosts each) run "
              f"{each.module} in {each.workdir}" for each in jobs]
    lines.append("Google bills the nodes as long as they exist; a cluster that scales its node pools adds them for "
                 "this and removes them after it.")
    lines += [f"To end it: {shlex.join(delete(each.name, options)[0].argv)}" for each in jobs]
    return "\n".join(lines)


def manifest(each: Job, options: Options) -> dict[str, Any]:
    """Returns the JobSet of a job (jobset.x-k8s.io/v1alpha2)."""
    one = tpus.parse(options.accelerator)
    hosts = one.hosts(options.chips_per_host)
    metadata: dict[str, Any] = {"name": each.name, "namespace": options.namespace}
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    if hosts > 1:  # all hosts of a slice in one node pool, and no other job's there
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},  # GKE tells the hosts each other's names
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": [
                {"name": "saved", "action": "RestartJobSetAndIgnoreMaxRestarts",
                 "onJobFailureReasons": ["PodFailurePolicy"]}]},
            "replicatedJobs": [{"name": "slice", "replicas": options.slices, "template": {"spec": {
                "parallelism": hosts, "completions": hosts, "completionMode": "Indexed", "backoffLimit": 0,
                "podFailurePolicy": {"rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [75]}},
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]},
                "template": {"spec": _pod(each, options, one)}}}}]}}


def to_yaml(value: Any) -> str:
    """Returns a manifest as YAML, fields in the order they were written.

    Text that some reader might take for a number, a truth value or a mark of YAML is quoted, as in JSON.
    """
    import yaml  # only where a manifest is written

    class Dumper(yaml.SafeDumper):
        """Quotes what is not a plain word."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        tag = "tag:yaml.org,2002:str"
        plain = _WORD.fullmatch(text) and dumper.resolve(yaml.ScalarNode, text, (True, False)) == tag
        return dumper.represent_scalar(tag, text, style=None if plain else '"')

    Dumper.add_representer(str, represent)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _pod(each: Job, options: Options, one: tpus.Slice) -> dict[str, Any]:
    """Returns the pod of a host."""
    chips = one.chips // one.hosts(options.chips_per_host)
    selector = {"cloud.google.com/gke-tpu-accelerator": one.kind.gke, "cloud.google.com/gke-tpu-topology": one.topology}
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": options.grace_seconds,
                           "nodeSelector": selector}
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true",
                               "effect": "NoSchedule"}]
    if options.reservation:
        selector["cloud.google.com/reservation-name"] = options.reservation
        selector["cloud.google.com/reservation-affinity"] = "specific"
    if options.slices > 1:  # between slices the host's own network is the faster one
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if options.priority_class:
        pod["priorityClassName"] = options.priority_class
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    container: dict[str, Any] = {"name": "train", "image": options.image,
                                 "command": [_literal(part) for part in each.command(options.python)]}
    if options.env:
        container["env"] = [{"name": name, "value": _literal(value)} for name, value in (
            entry.split("=", 1) for entry in options.env)]
    ports = (8471, 8431, 8482)  # the TPUs' own, their metrics, jax's coordinator
    container |= {"ports": [{"containerPort": port} for port in ports],
                  "resources": {"limits": {"google.com/tpu": str(chips)}, "requests": {"google.com/tpu": str(chips)}}}
    return {**pod, "containers": [container]}


def _literal(text: str) -> str:
    """Returns a text that Kubernetes, which puts in a variable for $(NAME), leaves as it was."""
    return text.replace("$", "$$")


def _kubectl(options: Options) -> tuple[str, ...]:
    """Returns kubectl with the cluster and namespace."""
    return ("kubectl", *((f"--context={options.context}",) if options.context else ()),
            f"--namespace={options.namespace}")


ENGINE = command.Engine(page=__doc__, options=Options, submit=submit, describe=describe,
                        free={"status": status, "logs": logs}, ending={"delete": delete})

if __name__ == "__main__":
    sys.exit(command.main(ENGINE, sys.argv))
