"""Checks a JobSet against its published schema, and against what the server checks beside the schema.

The schema is that of kubeflow-trainer-api: models generated from the OpenAPI of JobSet and of Kubernetes. They drop
fields that they do not know, so a manifest must come back from them as it went in. What the server adds in webhooks and
CEL (names that fit, rules that agree) is written out here; sources: JobSet's API and Kubernetes' Job documentation.
"""

import re

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
           "RestartJobAndIgnoreMaxRestarts"}
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}
RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?")


def problems(manifest):
    """Returns what a server would refuse in a JobSet's manifest; empty: nothing found."""
    try:
        parsed = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # pydantic's errors are ValueErrors
        return [f"schema: {error}"]
    found = list(differences(manifest, parsed, ""))
    if found:
        return found
    return list(rules(manifest))


def differences(given, parsed, path):
    """Yields where a value did not come back from the models as it went in."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        for key in given:  # what only `parsed` has is a default
            if key not in parsed:
                yield f"{path}.{key}: not in the schema"
            else:
                yield from differences(given[key], parsed[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(parsed, list) and len(given) == len(parsed):
        for index, (one, other) in enumerate(zip(given, parsed)):
            yield from differences(one, other, f"{path}[{index}]")
    elif given != parsed or type(given) is not type(parsed):
        yield f"{path}: {given!r} became {parsed!r}"


def rules(manifest):
    """Yields what JobSet's and Kubernetes' own checks would refuse."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        yield "apiVersion, kind: not a JobSet"
    name, spec = manifest.get("metadata", {}).get("name", ""), manifest.get("spec", {})
    jobs = spec.get("replicatedJobs", [])
    names = [each["name"] for each in jobs]
    if not jobs or len(set(names)) != len(names):
        yield "replicatedJobs: none, or two of one name"
    policy = spec.get("failurePolicy", {})
    if policy.get("maxRestarts", 0) < 0:
        yield "maxRestarts: below 0"
    rule_names = [rule["name"] for rule in policy.get("rules", [])]
    if len(set(rule_names)) != len(rule_names) or not all(map(RULE_NAME.fullmatch, rule_names)):
        yield "rules: names must be unique and of letters, digits and _,:"
    for rule in policy.get("rules", []):
        if rule["action"] not in ACTIONS or not set(rule.get("onJobFailureReasons", [])) <= REASONS:
            yield f"rules: {rule} has an unknown action or reason"
        if not set(rule.get("targetReplicatedJobs", [])) <= set(names):
            yield f"rules: {rule} names no replicated job"
    for each in jobs:
        job = each["template"].get("spec", {})
        longest = f"{name}-{each['name']}-{each.get('replicas', 1) - 1}-{job.get('completions', 1) - 1}-abcde"
        if not LABEL.fullmatch(longest):
            yield f"name: the pod {longest} has no valid name"
        yield from job_rules(job)


def job_rules(job):
    """Yields what Kubernetes would refuse in the spec of a Job."""
    pod = job["template"].get("spec", {})
    containers = [container["name"] for container in pod.get("containers", [])]
    if not containers:
        yield "containers: none"
    if job.get("completionMode", "NonIndexed") not in ("Indexed", "NonIndexed"):
        yield "completionMode: unknown"
    if job.get("completionMode") == "Indexed" and job.get("completions", 0) < 1:
        yield "completions: an indexed job needs them"
    if job.get("podFailurePolicy") and pod.get("restartPolicy") != "Never":
        yield "restartPolicy: podFailurePolicy needs Never"
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy: a job needs Never or OnFailure"
    for rule in job.get("podFailurePolicy", {}).get("rules", []):
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield f"podFailurePolicy: {rule} needs one of onExitCodes and onPodConditions"
        codes = rule.get("onExitCodes", {"values": [1]})
        if codes.get("containerName", containers[0]) not in containers:
            yield f"podFailurePolicy: {rule} names no container"
        if not codes["values"] or codes["values"] != sorted(set(codes["values"])) or 0 in codes["values"]:
            yield f"podFailurePolicy: the codes of {rule} must ascend, without 0"
        if any(condition.get("status") not in ("True", "False", "Unknown") for condition in rule.get(
                "onPodConditions", [])):
            yield f"podFailurePolicy: {rule} lacks a status"
    for resources in (container.get("resources", {}) for container in pod.get("containers", [])):
        limits, requests = resources.get("limits", {}), resources.get("requests", {})
        if any(limits.get(key) != requests.get(key) for key in ("google.com/tpu",)):
            yield "resources: limit and request of google.com/tpu must be the same"
