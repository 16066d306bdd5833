"""The objective: targets and masks, the fused loss over heads, head weights by step."""

from mtp_jax.objective.agreement import AgreementSums, agreement_sums
from mtp_jax.objective.cross_entropy import HeadSums, mtp_cross_entropy, mtp_evaluate, num_chunks
from mtp_jax.objective.schedules import SCHEDULES, HeadWeights, head_weights, register_schedule
from mtp_jax.objective.targets import multi_token_targets

__all__ = ["AgreementSums", "HeadSums", "HeadWeights", "SCHEDULES", "agreement_sums", "head_weights",
           "mtp_cross_entropy", "mtp_evaluate", "multi_token_targets", "num_chunks", "register_schedule"]
