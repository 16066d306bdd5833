"""A run in a page: the loss of each head, what drafting brings, a sample, the picture, and where everything lies."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mtp_jax.analysis.loss_plot import plot_loss, read_metrics
from mtp_jax.terminal import wants_colour
from mtp_jax.training import workdir as workdirs


def report(workdir: epath.PathLike, *, with_sample: bool = True, temperature: float = 0.8,
           coloured: bool | None = None, export: Callable[[epath.Path], str] | None = None,
           measure: Callable[[epath.Path], str] | None = None) -> str:
    """Draws plots/loss.png and returns the text of the report.

    Args:
      workdir: a run's folder with at least one checkpoint.
      with_sample: read the newest checkpoint, decode with it, measure and export it; not for one of several processes,
        which would have to read it together. The run's logging.sample=False leaves out all but the measuring.
      temperature: of the sample.
      coloured: colour the sample by the heads that drafted it. None: where stdout is a terminal.
      export: writes the model for use elsewhere and returns lines of it; called where the sample is made.
      measure: evaluates the model and returns lines of it.

    Returns:
      Lines to print.

    Raises:
      ValueError: the folder holds no run, or no checkpoint.
    """
    workdir = epath.Path(workdir)
    records = read_metrics(workdir)
    lines, measured = [*losses(records), ""], with_sample and measure is not None
    with_sample = with_sample and (workdirs.read_config(workdir) or {}).get("logging", {}).get("sample", True)
    if with_sample:
        lines += [*decoding(workdir, temperature, wants_colour(sys.stdout) if coloured is None else coloured), ""]
    lines.append("Where everything lies:")
    plot = plot_loss(workdir)
    for path, what in ((plot, "loss of each head over steps"), (workdir / "metrics.jsonl", "every number"),
                       (workdir / "config.json", "every setting"), (workdir / "checkpoints", "to go on from"),
                       (workdir, f"TensorBoard: tensorboard --logdir={workdir}")):
        lines.append(f"    {path}    {what}")
    if measured and measure is not None:
        lines += ["", measure(workdir)]
    if export is not None and with_sample:
        lines += ["", export(workdir)]
    return "\n".join(lines)


def losses(records: list[dict[str, Any]]) -> list[str]:
    """Returns a table of the last validation, one line a head."""
    last = next((record for record in reversed(records) if record["split"] == "validation"), None)
    if last is None:
        return ["No validation yet: it comes every train.validate_every steps."]
    in_bytes = "validation_bits_per_byte" in last
    lines = [f"Held-out loss at step {last['step']}:",
             f"    head   {'bits/byte' if in_bytes else 'nats/token'}   accuracy   agrees with head 1"]
    for k, loss in enumerate(last["head_loss"]):
        if loss is None:
            lines.append(f"    {k + 1:4d}   rests (weight 0)")
            continue
        value = loss / math.log(2) if in_bytes else loss
        agreement = last["head_agreement"][k]
        lines.append(f"    {k + 1:4d}   {value:9.3f}   {last['head_accuracy'][k]:8.1%}   "
                     + ("" if agreement is None else f"{agreement:8.1%}"))
    length = last.get("expected_accepted_length")
    if length is not None:
        lines.append(f"    Drafting with all heads would yield about {length:.2f} tokens a forward (estimated on the "
                     "held-out text).")
    return lines + of_sources(last.get("sources", {}), in_bytes=in_bytes)


def decoding(workdir: epath.Path, temperature: float, coloured: bool) -> list[str]:
    """Returns how fast the newest checkpoint decodes with its heads and without, and a sample."""
    from mtp_jax.analysis import drafting  # what needs jax and the model: the table and the plot do without

    try:
        trial = drafting.run_trial(workdir, temperature=temperature)
    except NotImplementedError as error:  # heads of the user's own
        return [f"No sample: {error}"]
    return drafting.report_lines(trial, temperature=temperature, coloured=coloured)


def of_sources(sources: Mapping[str, Mapping[str, Any]], *, in_bytes: bool) -> list[str]:
    """Returns a table of the loss of each head, one line a source of a mixture; no line without a mixture."""
    if not sources:
        return []
    width = max(6, *map(len, sources))
    num_heads = len(next(iter(sources.values()))["head_loss"])
    lines = ["", f"By source, {'bits/byte' if in_bytes else 'nats/token'}:", f"    {'source':{width}}" + "".join(
        f"   {f'head {k}':>7}" for k in range(1, num_heads + 1))]
    for name, fields in sources.items():
        values = ["rests" if loss is None else f"{loss / math.log(2) if in_bytes else loss:.3f}"
                  for loss in fields["head_loss"]]
        lines.append(f"    {name:{width}}" + "".join(f"   {value:>7}" for value in values))
    return lines
