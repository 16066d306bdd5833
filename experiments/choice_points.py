"""Does the n-token loss weigh the choices of a text more than what follows from them? (Section 5.1.)

The paper counts: a wrong decision at a choice point spoils n(n+1)/2 terms of the n-token loss, one whose paths meet
again n (`tests/evaluation/test_choice_points.py` enumerates them, n = 1 to 8). Here the same is measured on trained
models: the n-token loss is shared out, exactly, among the steps of a held-out text; a step's emphasis is its share over
n times its next-token loss, 1 for no consequence and (n+1)/2 for a choice that alone decides the next n - 1 tokens.
`mtp_jax/evaluation/theory/choice_points.py` has the definition. Choices are the first letters of words.

    python -m experiments.choice_points --workdir=runs/choice_points
    python -m mtp_jax.evaluate --workdir=ANY_RUN --task=choice_points [--data=TEXT]
    python -m mtp_jax.study --experiment=choice_points --workdir=runs/experiments

Hardware: 2 CPU cores, less than two minutes a run. The study's cells are those of experiments.head_sweep, and so is
the corpus.

Expected: the first letters of words have a higher emphasis than the fourth and later ones, with n = 2 and with n = 4.
"""

import dataclasses

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import choice_points, study_measure
from mtp_jax.analysis.study import Claim, Study, Verdict
from mtp_jax.evaluation import after_training

SEEDS = head_sweep.SEEDS
HEADS = (2, 4)
MINUTES = "a minute and a half"


def get_config(corpus="prose"):
    """Returns the settings of one run: that of experiments.head_sweep, four heads.

    Args:
      corpus: prose or code.
    """
    return head_sweep.get_config(corpus)


def study(seeds=SEEDS):
    """Returns the study."""
    cells = tuple(dataclasses.replace(head_sweep.cell(seed, f"model.num_heads={n}", num_heads=n),
                                      evaluate=(("--task=choice_points",),)) for seed in seeds for n in HEADS)
    claim = Claim("5.1", "The n-token loss weighs choices, the first letters of words, more than the letters that "
                  "follow from them.",
                  study_measure.RULE.format("with n = 2 and with n = 4 the emphasis of the first letters of words is "
                                            "above that of the fourth and later ones, and above that of all steps"),
                  judge)
    return Study("choice_points", "Which steps of a text does the n-token loss weigh?", cells,
                 lambda folder: study_measure.evaluation(folder, "choice_points"), (claim,), choice_points.plot_study,
                 f"{MINUTES} beside the cells of head_sweep",
                 columns=("emphasis", *(f"emphasis_{kind}" for kind in choice_points.KINDS)),
                 settings=head_sweep.SETTINGS)


def judge(rows):
    """Applies the rule."""
    found, said = {}, []
    for n in HEADS:
        first, later, every = (study_measure.column(rows, name, num_heads=n)
                               for name in ("emphasis_first", "emphasis_later", "emphasis"))
        found[f"n = {n}: first letters minus fourth and later ones, emphasis"] = study_measure.difference(first, later)
        found[f"n = {n}: first letters minus all steps, emphasis"] = study_measure.difference(first, every)
        said.append(f"{study_measure.mean_of(first):.3f} against {study_measure.mean_of(later):.3f} (n = {n})")
    return Verdict(study_measure.outcome(list(found.values())),
                   f"First letters of words have an emphasis of {', '.join(said)} of later ones.", found)


def measure(workdir):
    """Evaluates the run that has ended, and draws it."""
    return f"{after_training('choice_points')(workdir)}\nWrote {choice_points.plot_run(workdir)}"


if __name__ == "__main__":
    train.main(get_config, measure=measure)
