"""One of two processes of a run; started by test_two_processes.py."""

import sys

import jax

process, address, corpus, workdir, mesh = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=int(process))

from mtp_jax.training import prepare  # noqa: E402  the processes must know each other first
from tests.training.small_runs import mixed  # noqa: E402

config = mixed(corpus, parallel__mesh=mesh, optimizer__schedule_steps=8)
try:
    status = prepare.prepare(config, workdir).train()
except ValueError as error:
    print(f"refused: {error}")
    status = 1
sys.exit(status)
