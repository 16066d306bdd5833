"""Cloud TPU queued resources: every host installs the code and runs the experiment; 75 starts it again.

    python -m launch.queued_resources --experiment=paper --workdir=gs://BUCKET/paper_7b --accelerator=v5p:4x4x4 \\
        --zone=us-east5-a --code=gs://BUCKET/code.tar.gz --config.size=7b

prints the plan. --dry_run prints the exact call of gcloud, --yes makes it. See launch/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence

from launch import command, job, tpus
from launch.calls import Call
from launch.command import option
from launch.job import Job

_GIT = re.compile(r"(https|ssh)://\S+|git@[^\s:]+:\S+")
_ARCHIVE = re.compile(r"gs://[^\s/]+/\S+\.(tar\.gz|tgz)")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where and on what the jobs run; each field is a flag."""

    accelerator: str = option("", "The slice: generation and topology (v5p:4x4x4) or Cloud TPU's name (v5p-128).")
    zone: str = option("", "Zone of the TPUs, such as us-east5-a.")
    project: str = option("", "Google Cloud project; empty: gcloud's own setting.")
    slices: int = option(1, "Slices of that shape, with the data centre's network between them; see "
                         "--config.parallel.dcn_mesh.")
    code: str = option("", "Where a host gets the code: an address that git clones, or gs://BUCKET/FILE.tar.gz.")
    revision: str = option("", "Branch, tag or commit of a git address; empty: its default branch.")
    python: str = option("3.12", "Version of Python that a host sets up.")
    spot: bool = option(False, "Take spot capacity: cheaper, and taken away at half a minute's notice.")
    reserved: bool = option(False, "Take the project's reserved capacity.")
    runtime_version: str = option("", "Software of the TPU VM; empty: the one for jax on this generation.")
    network: str = option("", "VPC network; empty: default.")
    subnetwork: str = option("", "Subnetwork; empty: the network's own.")
    service_account: str = option("", "Account that reads and writes the buckets; empty: Compute Engine's default.")
    valid_until: str = option("", "Give up waiting after this long, such as 6h; empty: wait until deleted.")
    env: tuple[str, ...] = option((), "NAME=VALUE for the run's environment; may be repeated.")
    max_restarts: int = option(10, "How often in a row a run that failed is started again, such as one that waits for "
                               "a host that reboots; an hour's run begins a new row. Status 75 always starts it again.")
    delete_when_done: bool = option(False, "A host deletes the queued resource when the run has ended with status 0.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        for name in ("accelerator", "zone", "code"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is needed; --help says what it is.")
        kind = tpus.parse(self.accelerator).kind
        if not kind.runtime:
            raise ValueError(f"accelerator={self.accelerator!r}: the Cloud TPU API does not offer {kind.prefix}; use "
                             "GKE: python -m launch.gke.")
        if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.zone):
            raise ValueError(f"zone={self.zone!r} is not a zone such as us-east5-a.")
        if not _GIT.fullmatch(self.code) and not _ARCHIVE.fullmatch(self.code):
            raise ValueError(f"code={self.code!r} is neither an address that git clones (https://..., ssh://..., "
                             "git@HOST:PATH) nor an archive gs://BUCKET/FILE.tar.gz; hosts cannot read this machine's "
                             "files.")
        if self.revision and not _GIT.fullmatch(self.code):
            raise ValueError(f"revision={self.revision!r} goes with a git address, and code={self.code!r} is an "
                             "archive; leave it out.")
        if self.revision.startswith("-"):
            raise ValueError(f"revision={self.revision!r} starts like a flag of git.")
        if not re.fullmatch(r"3\.\d+", self.python) or int(self.python[2:]) < 11:
            raise ValueError(f"python={self.python!r} must be 3.11 or newer.")
        if self.spot and self.reserved:
            raise ValueError("spot=True and reserved=True exclude each other; choose one.")
        if self.slices < 1:
            raise ValueError(f"slices={self.slices} must be at least 1.")
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts} must be at least 0.")
        if self.valid_until and not re.fullmatch(r"\d+[smhd]", self.valid_until):
            raise ValueError(f"valid_until={self.valid_until!r} is not a duration such as 6h or 2d.")
        job.check_env(self.env)


def submit(jobs: Sequence[Job], options: Options) -> list[Call]:
    """Returns one call a job: it asks for a queued resource whose hosts run the job.

    Args:
      jobs: each gets TPUs of its own.
      options: the same for all.

    Raises:
      ValueError: a job or an option cannot be used.
    """
    options.validate()
    job.check_jobs(jobs, bucket=True)
    return [Call(("gcloud", "compute", "tpus", "queued-resources", "create", each.name, *_place(options),
                  *_resources(each, options), "--metadata-from-file=startup-script=/dev/stdin"),
                 stdin=startup_script(each, options)) for each in jobs]


def status(name: str, options: Options) -> list[Call]:
    """Returns the call that tells a job's state: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, FAILED."""
    return [Call(("gcloud", "compute", "tpus", "queued-resources", "describe", name, *_place(options),
                  "--format=yaml(name,state,tpu)"))]


def logs(name: str, options: Options) -> list[Call]:
    """Returns the call that follows the log of the first host."""
    node = name if options.slices == 1 else f"{name}-0"
    return [Call(("gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *_place(options), "--worker=0",
                  "--command=sudo journalctl --no-pager --lines=200 --follow --unit=google-startup-scripts"))]


def delete(name: str, options: Options) -> list[Call]:
    """Returns the call that gives the TPUs back, whatever they do; the workdir stays."""
    return [Call(("gcloud", "compute", "tpus", "queued-resources", "delete", name, *_place(options), "--force",
                  "--quiet"))]


def describe(jobs: Sequence[Job], options: Options) -> str:
    """Returns the plan for a person: what is taken, what it does, what it costs, how it is undone."""
    one = tpus.parse(options.accelerator)
    chips = one.chips * options.slices * len(jobs)
    kind = "spot" if options.spot else "reserved" if options.reserved else "on demand"
    lines = [f"Asks for {chips} TPU chips, {kind}, in {options.zone}:"]
    lines += [f"  {each.name}: {options.slices} x {one.name} ({one.chips} chips each) run {each.module} in "
              f"{each.workdir}" for each in jobs]
    lines.append("Google bills every chip from the moment a queued resource is active until it is deleted, also while "
                 "it is idle; a host " + ("deletes it when the run is done." if options.delete_when_done else
                                       "does not delete it when the run is done (--delete_when_done)."))
    lines += [f"To end it: {shlex.join(delete(each.name, options)[0].argv)}" for each in jobs]
    return "\n".join(lines)


def startup_script(each: Job, options: Options) -> str:
    """Returns the script that Cloud TPU runs as root on every host, at every boot.

    It installs once, runs the job, and starts it again: after status 75 (saved and unfinished) always, after an error
    at most `max_restarts` times in a row; a run of an hour begins a new row. A shutdown's SIGTERM is handed to the run,
    which saves; the next boot goes on.
    """
    run = shlex.join(each.command(python=".venv/bin/python"))
    if _GIT.fullmatch(options.code):
        fetch = f"git clone --quiet -- {shlex.quote(options.code)} code"
        if options.revision:
            fetch += f" && git -C code checkout --quiet {shlex.quote(options.revision)}"
    else:
        fetch = f"mkdir code && gcloud storage cat {shlex.quote(options.code)} | tar -xz -C code"
    return _SCRIPT.format(
        name=each.name, python=options.python, fetch=fetch, run=run, max_restarts=options.max_restarts,
        env="".join(f"export {name}={shlex.quote(value)}\n" for name, value in (
            entry.split("=", 1) for entry in options.env)),
        done=_DELETE.format(delete=shlex.join((*delete(each.name, options)[0].argv, "--async")))
        if options.delete_when_done else "")


# MTP_JAX_ROOT and MTP_JAX_PAUSE are for trying the script elsewhere.
_SCRIPT = """\
#!/bin/bash
# Job {name}. Runs as root on every host, at every boot; jax finds the other hosts by itself.
set -u -o pipefail
export HOME="${{HOME:-${{MTP_JAX_ROOT:-/opt/mtp_jax}}}}"
pause="${{MTP_JAX_PAUSE:-15}}"
root="${{MTP_JAX_ROOT:-/opt/mtp_jax}}"
mkdir -p "$root" && cd "$root" || exit 1

install() {{
  rm -rf code && {fetch} && (
    cd code && python3 -m pip install --quiet uv &&
    python3 -m uv venv --quiet --clear --python {python} .venv &&
    python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[tpu]'
  ) && touch installed
}}
for try in 1 2 3; do
  [ -e installed ] || install || sleep "$pause"
done
[ -e installed ] || {{ echo "launch: the code could not be installed; see above" >&2; exit 1; }}
cd code || exit 1

{env}child="" stopping="" failures=0
trap 'stopping=yes; [ -z "$child" ] || kill -TERM "$child"' TERM
while true; do
  begun=$SECONDS
  {run} &
  child=$!
  wait "$child"; status=$?
  if [ -n "$stopping" ]; then  # the host shuts down: let the run save; the next boot goes on
    wait "$child"
    echo "launch: stopped by SIGTERM"
    exit 75
  fi
  child=""
  echo "launch: the run ended with status $status"
  case "$status" in
    0) break ;;
    75) failures=0 ;;
    130) exit 130 ;;
    *) [ $((SECONDS - begun)) -lt 3600 ] || failures=0  # it came further
       failures=$((failures + 1))
       if [ "$failures" -gt {max_restarts} ]; then
         echo "launch: failed $failures times in a row; it is not started again" >&2
         exit 1
       fi ;;
  esac
  sleep "$pause"
  [ -z "$stopping" ] || exit 75
done
{done}"""

_DELETE = """\
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
if [ "$(curl --silent --header 'Metadata-Flavor: Google' "$attributes/agent-worker-number")" = 0 ]; then
  sleep "$pause"  # the other hosts end too
  {delete}
fi
"""


def _place(options: Options) -> tuple[str, ...]:
    """Returns where a queued resource is."""
    if not options.zone:
        raise ValueError("--zone is needed; --help says what it is.")
    return (*((f"--project={options.project}",) if options.project else ()), f"--zone={options.zone}")


def _resources(each: Job, options: Options) -> tuple[str, ...]:
    """Returns the flags of gcloud that say what is asked for."""
    one = tpus.parse(options.accelerator)
    if one.accelerator_type or one.kind.dimensions == 2:
        flags = [f"--accelerator-type={one.accelerator_type or f'{one.kind.prefix}-{one.chips * one.kind.unit}'}"]
    else:
        flags = [f"--type={one.kind.prefix}", f"--topology={one.topology}"]
    flags.append(f"--runtime-version={options.runtime_version or one.kind.runtime}")
    if options.slices == 1:
        flags.append(f"--node-id={each.name}")
    else:
        flags += [f"--node-count={options.slices}", f"--node-prefix={each.name}"]
    flags += ["--spot"] * options.spot + ["--reserved"] * options.reserved
    for name, value in (("network", options.network), ("subnetwork", options.subnetwork),
                        ("service-account", options.service_account), ("valid-until-duration", options.valid_until)):
        flags += [f"--{name}={value}"] * bool(value)
    return tuple(flags)


ENGINE = command.Engine(page=__doc__, options=Options, submit=submit, describe=describe,
                        free={"status": status, "logs": logs}, ending={"delete": delete})

if __name__ == "__main__":
    sys.exit(command.main(ENGINE, sys.argv))
