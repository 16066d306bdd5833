"""The lenient score beside the strict one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Sample


def with_lenient(count: Callable[[Sequence[Sample], Request], Metrics], samples: Sequence[Sample], request: Request
                 ) -> Metrics:
    """Returns the metrics of the strict verdicts, and those of the lenient ones under "lenient_..." names.

    Args:
      count: returns metrics of "passed".
      samples: scored; their fields hold "passed" and "lenient".
      request: of the task.
    """
    strict = count(samples, request)
    lenient = count([dataclasses.replace(sample, fields={**sample.fields, "passed": sample.fields.get("lenient")})
                     for sample in samples], request)
    return Metrics(
        {**strict.values, **{f"lenient_{name}": value for name, value in lenient.values.items()}},
        {**strict.intervals, **{f"lenient_{name}": value for name, value in lenient.intervals.items()}},
        {**strict.tables, **{f"lenient_{name}": value for name, value in lenient.tables.items()}})
