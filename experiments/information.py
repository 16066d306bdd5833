"""What do the next two tokens tell of each other under a model, with and without multi-token prediction? (Section 5.2.)

By the paper's identity H(X) + H(Y) = H(X|Y) + 2 I(X;Y) + H(Y|X), a loss on two tokens ahead weighs what they have in
common twice. `tests/evaluation/test_information.py` checks it, and Lemma L.3 for a model that is not the truth, on
random distributions to 1e-10, and shows a relative mutual information below 0. Here it is measured on trained models,
from the exact joint of the next two bytes under head 1 (`mtp_jax/evaluation/tasks/information.py` has the definitions):
I(X;Y) of the model's own joint, I_p||q with the held-out text for p, and how far head 2 is from what head 1 implies.

    python -m experiments.information --workdir=runs/information
    python -m mtp_jax.evaluate --workdir=ANY_RUN --task=information [--data=TEXT]
    python -m mtp_jax.study --experiment=information --workdir=runs/experiments

Hardware: 2 CPU cores, less than two minutes a run. The study's cells are those of experiments.head_sweep, and so is
the corpus.

Expected, if the loss on two tokens makes a model use what they have in common more: I_p||q is higher with n = 2 than
with n = 1. The paper says what the loss weighs, not what a small model makes of it.
"""

import dataclasses

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import information, study_measure
from mtp_jax.analysis.study import Claim, Study, Verdict
from mtp_jax.evaluation import after_training

SEEDS = head_sweep.SEEDS
HEADS = (1, 2, 4)
MINUTES = "four minutes"


def get_config(corpus="prose"):
    """Returns the settings of one run: that of experiments.head_sweep with two heads.

    Args:
      corpus: prose or code.
    """
    config = head_sweep.get_config(corpus)
    config.model.num_heads = 2
    return config


def study(seeds=SEEDS):
    """Returns the study."""
    cells = tuple(dataclasses.replace(head_sweep.cell(seed, f"model.num_heads={n}", num_heads=n),
                                      evaluate=(("--task=information",),)) for seed in seeds for n in HEADS)
    claim = Claim("5.2", "Trained on two tokens ahead, a model uses more of what the next two tokens have in common.",
                  study_measure.RULE.format("the relative mutual information I_p||q(X;Y) on held-out text is higher "
                                            "with n = 2 than with n = 1"), judge)
    return Study("information", "What do the next two tokens tell of each other, with and without multi-token "
                 "prediction?", cells, lambda folder: study_measure.evaluation(folder, "information"), (claim,),
                 information.plot_study, f"{MINUTES} beside the cells of head_sweep",
                 columns=("mutual_information", "relative_information", "loss_x", "loss_y_given_x", "loss_y",
                          "head_2_loss", "head_2_divergence"), settings=head_sweep.SETTINGS)


def judge(rows):
    """Applies the rule."""
    shared = {n: study_measure.column(rows, "relative_information", num_heads=n) for n in HEADS}
    ahead = {n: study_measure.column(rows, "loss_y", num_heads=n) for n in HEADS}
    decisive = study_measure.difference(shared[2], shared[1])
    found = {"n = 2 minus n = 1, I_p||q(X;Y) in nats": decisive,
             "n = 4 minus n = 1, I_p||q(X;Y) in nats (not part of the rule)": study_measure.difference(
                 shared[4], shared[1])}
    for n in HEADS[1:]:
        second = study_measure.column(rows, "head_2_loss", num_heads=n)
        found[f"n = {n}: head 2 minus head 1 summed over X, loss on Y in nats (not part of the rule)"] = (
            study_measure.difference(second, ahead[n]))
    means = ", ".join(f"{study_measure.mean_of(values):.3f} (n = {n})" for n, values in shared.items())
    return Verdict(study_measure.outcome([decisive]),
                   f"The relative mutual information of the next two bytes is {means} nats.", found)


def measure(workdir):
    """Evaluates the run that has ended, and draws it."""
    return f"{after_training('information')(workdir)}\nWrote {information.plot_run(workdir)}"


if __name__ == "__main__":
    train.main(get_config, measure=measure)
