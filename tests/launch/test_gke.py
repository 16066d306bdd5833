"""JobSets: the calls of kubectl as recorded, the manifest against the published schema, settings unharmed."""

import copy
import dataclasses
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import gke, job
from launch.gke import ENGINE, Options
from launch.job import Job
from tests.launch import recorded
from tests.launch.jobset_schema import problems

JOB = Job("paper-7b", "experiments.paper", "gs://bucket/runs/paper_7b", ("--config.size=7b",))
OPTIONS = Options(accelerator="v5p:4x4x4", image="europe-docker.pkg.dev/mine/images/mtp_jax:1")
EVERYTHING = dataclasses.replace(OPTIONS, slices=2, spot=True, queue="q", priority_class="high", service_account="me",
                                 env=("XLA_FLAGS=--a --b", "HOME=$(PWD)"), namespace="team", context="cluster")
RUN = ["--experiment=paper", "--workdir=gs://bucket/runs/paper_7b", f"--image={OPTIONS.image}"]


@pytest.mark.parametrize("name, arguments", [
    ("gke", [*RUN, "--accelerator=v5p:4x4x4", "--config.size=7b", "--config.data.path=it's $(HOME)"]),
    ("gke_slices", [*RUN, "--accelerator=v5litepod-256", "--slices=2", "--spot", "--name=seven", "--context=mine",
                    "--namespace=team", "--queue=q", "--service_account=writer", "--priority_class=high",
                    "--config.parallel.dcn_mesh=data:2", "--env=LIBTPU_INIT_ARGS=--a=1", "--max_restarts=0"]),
    ("gke_one_host", [*RUN, "--accelerator=tpu7x:2x2x1", "--reservation=ours", "--grace_seconds=30"]),
    ("gke_status", ["--action=status", "--name=paper-7b"]),
    ("gke_logs", ["--action=logs", "--name=paper-7b", "--context=mine"]),
    ("gke_delete", ["--action=delete", "--workdir=gs://bucket/runs/paper_7b"])])
def test_the_exact_calls(name, arguments, capsys):
    recorded.check(name, ENGINE, arguments, capsys)


@pytest.mark.parametrize("accelerator, slices, hosts, chips", [
    ("v4:2x2x1", 1, 1, 4), ("v4:4x4x4", 1, 16, 4), ("v5e:1x1", 1, 1, 1), ("v5e:2x4", 1, 1, 8), ("v5e:16x16", 2, 64, 4),
    ("v5p:16x16x24", 1, 1536, 4), ("v6e:4x4", 100, 4, 4), ("tpu7x:4x4x8", 2, 32, 4)])
def test_the_manifest_fits_the_schema_and_the_slice(accelerator, slices, hosts, chips):
    options = dataclasses.replace(EVERYTHING, accelerator=accelerator, slices=slices)
    longest = dataclasses.replace(JOB, name="a" * job.MAX_NAME)
    options.validate()
    manifest = gke.manifest(longest, options)
    assert problems(manifest) == []
    (replicated,) = manifest["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    assert container["resources"]["limits"] == {"google.com/tpu": str(chips)}
    assert spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == accelerator.split(":")[1]


def places(value, path=()):
    """Yields the path of every field that the schema names; keys that a user chooses are none."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key)
            if key not in ("labels", "annotations", "nodeSelector", "limits", "requests"):
                yield from places(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*path, index))


def at(manifest, path):
    for key in path:
        manifest = manifest[key]
    return manifest


def test_every_misspelt_field_is_found():
    good = gke.manifest(JOB, EVERYTHING)
    fields = list(places(good))
    assert problems(good) == [] and len(fields) > 60
    for path in fields:
        bad = copy.deepcopy(good)
        parent = at(bad, path[:-1])
        parent[path[-1] + "s"] = parent.pop(path[-1])
        assert problems(bad), f"{'.'.join(map(str, path))} misspelt was not found"


@pytest.mark.parametrize("path, value", [
    ("spec.failurePolicy.maxRestarts", "3"), ("spec.failurePolicy.maxRestarts", -1),
    ("spec.failurePolicy.rules.0.action", "Restart"), ("spec.failurePolicy.rules.0.name", "not saved"),
    ("spec.failurePolicy.rules.0.onJobFailureReasons", ["Pod"]), ("spec.replicatedJobs.0.replicas", 1.5),
    ("metadata.name", "a" * 60), ("metadata.name", "A"), ("kind", "Jobset"), ("spec.replicatedJobs", []),
    ("spec.replicatedJobs.0.template.spec.completionMode", "indexed"),
    ("spec.replicatedJobs.0.template.spec.template.spec.restartPolicy", "OnFailure"),
    ("spec.replicatedJobs.0.template.spec.template.spec.terminationGracePeriodSeconds", "30"),
    ("spec.replicatedJobs.0.template.spec.template.spec.tolerations.0.effect", "NoScheduling"),
    ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.command", "python"),
    ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.ports.0.containerPort", "8471"),
    ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.name", "main"),
    ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.operator", "in"),
    ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.values", [75, 0]),
    ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.action", "Fail"),
    ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.1.onPodConditions.0.status", ""),
    ("spec.replicatedJobs.0.template.spec.completions", 0)])
def test_wrong_values_are_found(path, value):
    bad = gke.manifest(JOB, EVERYTHING)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at(bad, parents)[last] = value
    assert problems(bad)


def test_75_and_preemption_start_again_uncounted_and_errors_are_counted():
    spec = gke.manifest(JOB, OPTIONS)["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == OPTIONS.max_restarts
    job_spec = spec["replicatedJobs"][0]["template"]["spec"]
    for code, preempted, counted in ((75, False, False), (1, False, True), (137, True, False), (134, False, True)):
        reason = job_failure(job_spec, code, preempted)
        uncounted = [rule for rule in spec["failurePolicy"]["rules"] if reason in rule["onJobFailureReasons"]]
        assert (not uncounted) is counted
        assert all(rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" for rule in uncounted)


def job_failure(spec, code, preempted):
    """Returns why Kubernetes lets a Job fail whose container ended with this code, as its documentation has it."""
    for rule in spec["podFailurePolicy"]["rules"]:
        hit = code in rule["onExitCodes"]["values"] if "onExitCodes" in rule else preempted
        if hit and rule["action"] == "FailJob":
            return "PodFailurePolicy"
    assert spec["backoffLimit"] == 0
    return "BackoffLimitExceeded"


def expand(text):
    """Puts in variables as Kubernetes does: $(NAME) is one, $$ is a $."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "(a variable)", text)


@settings(deadline=None)
@given(st.lists(st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.sampled_from(["$(HOME)", "$$(HOME)", "$", "yes", "y", "null", "~", "1e3", "0x1", "1_0", "a: b", "#", "'", '"'])),
    max_size=3))
def test_settings_survive_yaml_and_kubernetes(values):
    job = dataclasses.replace(JOB, settings=tuple(f"--config.a={value}" for value in values))
    options = dataclasses.replace(OPTIONS, env=tuple(f"A{number}={value}" for number, value in enumerate(values)))
    manifest = gke.manifest(job, options)
    text = gke.to_yaml(manifest)
    assert yaml.safe_load(text) == manifest
    (container,) = at(manifest, ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers"))
    assert [expand(part) for part in container["command"]] == list(job.command())
    assert [expand(entry["value"]) for entry in container.get("env", [])] == values


@pytest.mark.parametrize("text", ["y", "no", "True", "12", "1e3", "null", "~", "-", "a: b", "*a", "0o7", "1_000", "=",
                                  ""])
def test_text_that_yaml_readers_disagree_on_is_quoted(text):
    assert gke.to_yaml({"key": text}) == f'key: "{text}"\n'


def test_plain_words_stay_plain():
    assert gke.to_yaml({"key": ["Never", "gs://b/x-1"]}) == "key:\n- Never\n- gs://b/x-1\n"


def test_each_job_has_a_jobset_of_its_own():
    jobs = [dataclasses.replace(JOB, name=f"n-{n}", workdir=f"gs://b/n{n}") for n in (1, 2)]
    manifests = [yaml.safe_load(call.stdin) for call in gke.submit(jobs, OPTIONS)]
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["n-1", "n-2"]
    plan = gke.describe(jobs, OPTIONS)
    assert "128 TPU chips" in plan and plan.count("delete jobset n-") == 2


@pytest.mark.parametrize("change, told", [
    ({"accelerator": ""}, "--accelerator is needed"), ({"image": ""}, "--image is needed"),
    ({"image": "my image"}, "container image"), ({"slices": 0}, r"\[1, 100\]"), ({"slices": 101}, r"\[1, 100\]"),
    ({"accelerator": "v6e:2x2", "slices": 2}, "take a larger slice"), ({"chips_per_host": 3}, "does not divide"),
    ({"namespace": "a b"}, "namespace='a b'"), ({"queue": "-"}, "queue='-'"),
    ({"spot": True, "reservation": "r"}, "exclude each other"), ({"max_restarts": -1}, "max_restarts=-1"),
    ({"grace_seconds": 0}, "grace_seconds=0"), ({"env": ("A",)}, "NAME=VALUE")])
def test_options_that_cannot_be_used(change, told):
    with pytest.raises(ValueError, match=told):
        gke.submit([JOB], dataclasses.replace(OPTIONS, **change))
