"""Text to a prepared corpus on disk: `python -m mtp_jax.data.prepare`.

    plan = make_plan(config)                    # which documents go into which shard
    for shard in begin(plan, output):           # those that are not done yet; refuses a folder of other settings
        write_shard(plan.settings, shard, {}, output)     # anywhere, in any order
    manifest = finish(plan, output)

`prepare.local` does this with the processes of this machine.
"""

from mtp_jax.data.prepare.folder import begin, finish, finished
from mtp_jax.data.prepare.plan import Plan, Settings, Shard, make_plan
from mtp_jax.data.prepare.shard import ShardInfo, digests, find_duplicates, write_shard

__all__ = ["Plan", "Settings", "Shard", "ShardInfo", "begin", "digests", "find_duplicates", "finish", "finished",
           "make_plan", "write_shard"]
