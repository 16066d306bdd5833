"""GPUs under SLURM: one task a GPU, several jobs as one array; a saved run (status 75) is queued again.

    python -m launch.slurm --experiment=paper --workdir=/shared/runs/paper_7b --nodes=4 --gpus_per_node=8 \\
        --time=24:00:00 --setup='source .venv/bin/activate' --config.size=7b

prints the plan. --dry_run prints the exact call of sbatch with its script, --yes makes it. See launch/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence

from launch import command, job
from launch.calls import Call
from launch.command import option
from launch.job import Job

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")  # minutes, minutes:seconds, ..., days-hours:minutes:seconds
_WORD = re.compile(r"[\w./%:@,+-]+")  # no blank and no quote: what an #SBATCH line takes as it is


@dataclasses.dataclass(frozen=True)
class Options:
    """What the jobs run on; each field is a flag."""

    nodes: int = option(1, "Nodes of a job.")
    gpus_per_node: int = option(8, "GPUs of a node that a job takes; each gets a process of its own.")
    cpus_per_gpu: int = option(0, "Cores of such a process; 0: the cluster's default.")
    time: str = option("", "Time limit as SLURM writes it, such as 24:00:00; empty: the partition's.")
    partition: str = option("", "Partition; empty: the cluster's default.")
    account: str = option("", "Account that is charged; empty: yours.")
    qos: str = option("", "Quality of service; empty: the default.")
    constraint: str = option("", "Features that the nodes must have, such as h100.")
    exclusive: bool = option(False, "Share the nodes with no other job.")
    output: str = option("", "File of a job's output; SLURM puts in the name for %x, the number for %j, an array's for "
                         "%A, the task's for %a. Empty: %x-%j.out, of several jobs %x-%A_%a.out.")
    setup: tuple[str, ...] = option((), "Shell line that comes before the run, such as 'module load cuda'; may be "
                                    "repeated.")
    srun: tuple[str, ...] = option((), "Argument for srun, such as --container-image=IMAGE; may be repeated.")
    python: str = option("python", "The interpreter, after the set-up.")
    env: tuple[str, ...] = option((), "NAME=VALUE for the run's environment; may be repeated.")
    at_once: int = option(0, "Of several jobs at most so many run at a time; 0: as many as the cluster gives.")
    max_restarts: int = option(3, "How often in a row a run that failed is started again inside its job; an hour's run "
                               "begins a new row.")
    grace_seconds: int = option(300, "The run is told to save and end so long before the time limit.")

    def validate(self) -> None:
        """Raises ValueError where a field cannot be used as it is."""
        for name, least in (("nodes", 1), ("gpus_per_node", 1), ("cpus_per_gpu", 0), ("at_once", 0),
                            ("max_restarts", 0), ("grace_seconds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.grace_seconds > 65535:
            raise ValueError(f"grace_seconds={self.grace_seconds} is more than SLURM's most, 65535.")
        if self.time and not _TIME.fullmatch(self.time):
            raise ValueError(f"time={self.time!r} is not a time limit such as 90 (minutes), 24:00:00 or 2-12.")
        for name in ("partition", "account", "qos", "output"):
            value = getattr(self, name)
            if value and not _WORD.fullmatch(value):
                raise ValueError(f"{name}={value!r} has a blank or a sign that an #SBATCH line does not take as it is.")
        if self.constraint and not re.fullmatch(r"[\w.&|()\[\]*-]+", self.constraint):
            raise ValueError(f"constraint={self.constraint!r} is not names of features joined by & or |.")
        for line in self.setup:
            if line.startswith("#SBATCH"):
                raise ValueError(f"setup={line!r} comes too late for sbatch to read it; give the option itself, or put "
                                 "it in the environment as SBATCH_NAME.")
        for argument in self.srun:
            if not argument.startswith("-"):
                raise ValueError(f"srun={argument!r} is not an argument of srun such as --container-image=IMAGE.")
        job.check_env(self.env)


def submit(jobs: Sequence[Job], options: Options) -> list[Call]:
    """Returns one call of sbatch: a job, or an array with a task for each of several jobs.

    Args:
      jobs: each gets the same nodes and GPUs; the array has their `job.common_name`.
      options: the same for all.

    Raises:
      ValueError: a job or an option cannot be used.
    """
    options.validate()
    job.check_jobs(jobs, bucket=False)
    return [Call(("sbatch",), stdin=script(jobs, options))]


def status(name: str, options: Options) -> list[Call]:
    """Returns the call that tells a job's state: PENDING, RUNNING, REQUEUED."""
    return [Call(("squeue", "--me", f"--name={name}"))]


def delete(name: str, options: Options) -> list[Call]:
    """Returns the call that ends a job; the workdir stays."""
    return [Call(("scancel", "--me", f"--name={name}"))]


def describe(jobs: Sequence[Job], options: Options) -> str:
    """Returns the plan for a person: what is taken, what it does, how it is undone."""
    gpus = options.nodes * options.gpus_per_node
    lines = [f"Asks for {gpus * len(jobs)} GPUs, {options.nodes} x {options.gpus_per_node} a job, time limit "
             f"{options.time or 'of the partition'}:"]
    lines += [f"  {each.name}: {each.module} in {each.workdir}" for each in jobs]
    lines.append("At the time limit a run saves and is queued again, until it is done.")
    lines.append(f"To end it: {shlex.join(delete(job.common_name(jobs), options)[0].argv)}")
    return "\n".join(lines)


def script(jobs: Sequence[Job], options: Options) -> str:
    """Returns the script that sbatch takes: one job's, or an array's, whose task number picks the command.

    Of the run's tasks srun returns the highest status: 75 where all have saved. Then the job is queued again. After an
    error the run is started again at most `max_restarts` times in a row, and then the job fails; a run of an hour
    begins a new row.
    """
    task = ["srun", "--kill-on-bad-exit=0"]  # while a task still saves, another may have ended with 75
    if options.cpus_per_gpu:
        task.append(f"--cpus-per-task={options.cpus_per_gpu}")  # srun does not take it over from sbatch
    task += options.srun
    if len(jobs) == 1:
        choice = f"run() {{ {shlex.join((*task, *jobs[0].command(options.python)))}; }}\n"
    else:
        choice = 'run() {\n  case "$SLURM_ARRAY_TASK_ID" in\n' + "".join(
            f"    {number}) {shlex.join((*task, *each.command(options.python)))} ;;  # {each.name}\n"
            for number, each in enumerate(jobs)) + "  esac\n}\n"
    env = [f"export {name}={shlex.quote(value)}" for name, value in (entry.split("=", 1) for entry in options.env)]
    setup = ["set -e", *options.setup, "set +e"] if options.setup else []  # a set-up that fails ends the job
    loop = choice + _LOOP.format(max_restarts=options.max_restarts)
    return "\n".join(["#!/bin/bash", *_directives(jobs, options), *setup, *env, loop])


_LOOP = """\
failures=0
while true; do
  begun=$SECONDS
  run
  status=$?
  echo "launch: the run ended with status $status"
  case "$status" in
    0|130) exit "$status" ;;
    75) scontrol requeue "$SLURM_JOB_ID"  # the same job, with its place in the array
        exit 75 ;;
    *) [ $((SECONDS - begun)) -lt 3600 ] || failures=0  # it came further
       failures=$((failures + 1))
       if [ "$failures" -gt {max_restarts} ]; then
         echo "launch: failed $failures times in a row; it is not started again" >&2
         exit 1
       fi ;;
  esac
  sleep "${{MTP_JAX_PAUSE:-15}}"
done
"""


def _directives(jobs: Sequence[Job], options: Options) -> list[str]:
    """Returns the lines of the script that sbatch reads."""
    flags = [f"job-name={job.common_name(jobs)}", f"nodes={options.nodes}", f"ntasks-per-node={options.gpus_per_node}",
             f"gpus-per-node={options.gpus_per_node}"]
    if options.cpus_per_gpu:
        flags.append(f"cpus-per-task={options.cpus_per_gpu}")
    for name in ("time", "partition", "account", "qos", "constraint"):
        if getattr(options, name):
            flags.append(f"{name}={getattr(options, name)}")
    if options.exclusive:
        flags.append("exclusive")
    # SIGTERM goes to the tasks (not to this script): they save and end with 75.
    flags += [f"signal=TERM@{options.grace_seconds}", "requeue", "open-mode=append",
              f"output={options.output or ('%x-%j.out' if len(jobs) == 1 else '%x-%A_%a.out')}"]
    if len(jobs) > 1:
        flags.append(f"array=0-{len(jobs) - 1}" + (f"%{options.at_once}" if options.at_once else ""))
    return [f"#SBATCH --{flag}" for flag in flags]


ENGINE = command.Engine(page=__doc__, options=Options, submit=submit, describe=describe,
                        free={"status": status}, ending={"delete": delete})

if __name__ == "__main__":
    sys.exit(command.main(ENGINE, sys.argv))
