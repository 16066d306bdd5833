"""Does the n-token loss weigh the choices of a text more than what follows from them? (Section 5.1.)

The paper counts: a wrong decision at a choice point spoils n(n+1)/2 terms of the n-token loss, one whose paths meet
again n (`tests/evaluation/test_choice_points.py` enumerates them, n = 1 to 8). Here the same is measured on trained
models: the n-token loss is shared out, exactly, among the steps of a held-out text; a step's emphasis is its share
over n times its next-token loss, 1 for no consequence and (n+1)/2 for a choice that alone decides the next n - 1
tokens. `mtp_jax/evaluation/theory/choice_points.py` has the definition. In letters, those that begin a word are taken
for its choices, and the fourth and later ones for what follows from them.

    python -m experiments.choice_points --workdir=runs/choice_points
    python -m mtp_jax.evaluate --workdir=ANY_RUN --task=choice_points [--data=TEXT]
    python -m mtp_jax.study --experiment=choice_points --workdir=runs/experiments

Hardware: 2 CPU cores, less than two minutes a run. The study's cells are those of experiments.head_sweep, and so is
the corpus.

Expected: an emphasis above 1 everywhere, and of later letters below that of all steps. A pilot (seed 100) spoke against
first letters having the highest of a word: second ones had it.
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
    claims = (
        Claim("5.1 first letters", "The n-token loss weighs the first letters of words, which decide the rest, more "
              "than the letters that follow.",
              study_measure.RULE.format("with n = 2 and with n = 4 the emphasis of the first letters of words is above "
                                        "that of the fourth and later ones, and above that of all steps"), judge_first),
        Claim("5.1 later letters", "The n-token loss weighs the later letters of words, which follow from the first "
              "ones, less than other steps.",
              study_measure.RULE.format("with n = 2 and with n = 4 the emphasis of the fourth and later letters of "
                                        "words is below that of all steps"), judge_later))
    return Study("choice_points", "Which steps of a text does the n-token loss weigh?", cells,
                 lambda folder: study_measure.evaluation(folder, "choice_points"), claims, choice_points.plot_study,
                 f"{MINUTES} beside the cells of head_sweep",
                 columns=("emphasis", *(f"emphasis_{kind}" for kind in choice_points.KINDS)),
                 settings=head_sweep.SETTINGS)


def judge_first(rows):
    """Applies the rule on first letters."""
    found = {}
    for n in HEADS:
        first = study_measure.column(rows, "emphasis_first", num_heads=n)
        for name, other in (("fourth and later ones", "emphasis_later"), ("all steps", "emphasis")):
            found[f"n = {n}: first letters minus {name}, emphasis"] = study_measure.difference(
                first, study_measure.column(rows, other, num_heads=n))
    return Verdict(study_measure.outcome(list(found.values())),
                   f"First letters of words have an emphasis of {means(rows, 'emphasis_first')}, later ones "
                   f"{means(rows, 'emphasis_later')}, all steps {means(rows, 'emphasis')}.", found)


def judge_later(rows):
    """Applies the rule on later letters."""
    found = {f"n = {n}: all steps minus fourth and later letters, emphasis": study_measure.difference(
        study_measure.column(rows, "emphasis", num_heads=n), study_measure.column(rows, "emphasis_later", num_heads=n))
        for n in HEADS}
    return Verdict(study_measure.outcome(list(found.values())),
                   f"Fourth and later letters of words have an emphasis of {means(rows, 'emphasis_later')}, all steps "
                   f"{means(rows, 'emphasis')}.", found)


def means(rows, name):
    """Returns a column's means in words."""
    return ", ".join(f"{study_measure.mean_of(study_measure.column(rows, name, num_heads=n)):.3f} (n = {n})"
                     for n in HEADS)


def measure(workdir):
    """Evaluates the run that has ended, and draws it."""
    return f"{after_training('choice_points')(workdir)}\nWrote {choice_points.plot_run(workdir)}"


if __name__ == "__main__":
    train.main(get_config, measure=measure)
