"""The probes that `python -m mtp_jax.probe NAME` knows.

A module holds `Options`, a frozen dataclass whose fields are made by `mtp_jax.config.generation.flag` (each is a flag),
and `run(options) -> exit status`, which raises ValueError for what a user can mend. It is imported for --help as well,
so it imports jax, matplotlib and what stands on them inside functions.
"""

from __future__ import annotations

PROBES: dict[str, str] = {
    "insert": "mtp_jax.analysis.probes.insertion_command",
    "attention": "mtp_jax.analysis.probes.attention_command",
    "arm": "mtp_jax.analysis.probes.arm_command",
}
