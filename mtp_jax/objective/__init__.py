"""The objective: targets and masks, the fused loss over heads, head weights by step."""

from mtp_jax.objective.agreement import AgreementSums, agreement_sums
from mtp_jax.objective.cross_entropy import HeadSums, mtp_cross_entropy, mtp_evaluate, num_chunks
from mtp_jax.objective.loops import (
    LoopSums,
    every_loop_of,
    expected_loss,
    gate_loss,
    last_loop,
    loop_sums,
    positions_of,
)
from mtp_jax.objective.schedules import SCHEDULES, HeadWeights, head_weights, register_schedule
from mtp_jax.objective.targets import multi_token_targets

__all__ = ["AgreementSums", "HeadSums", "HeadWeights", "LoopSums", "SCHEDULES", "agreement_sums", "every_loop_of",
           "expected_loss", "gate_loss", "head_weights", "last_loop", "loop_sums", "mtp_cross_entropy", "mtp_evaluate",
           "multi_token_targets", "num_chunks", "positions_of", "register_schedule"]
