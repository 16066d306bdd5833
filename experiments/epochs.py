"""Does the gain or cost of n heads shrink over several epochs? The same tokens, as one epoch of much or four of little.

The paper's gain of n = 4 shrinks from 3.8 to 2.4 points on MBPP from under one epoch to four (section 3.5, Table 1),
there with five times the tokens. Here the number of tokens is the same, and what is held out decides how often they
come again: half of the stories make up one epoch at most, a thirteenth of them four.

    python -m experiments.epochs --workdir=runs/four_epochs --config.epochs=4
    python -m mtp_jax.study --experiment=epochs --workdir=runs/experiments

Hardware: 2 CPU cores, about six core-minutes. Corpus as in experiments.head_sweep; the held-out stories of the two are
not the same, so that losses are compared within each.

The paper's, 7B, for one part of an epoch and for four epochs, on accelerators; data and tokenizer as in
experiments.paper:

    python -m mtp_jax.sweep --experiment=paper --config.size=7b \\
        --grid='config.recipe=code_7b_200b,code_7b_1t;config.model.num_heads=1,4' \\
        --workdir=gs://BUCKET/epochs --engine=gke ...

Expected: open; at this size n = 4 costs next-token loss in both.
"""

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Study
from mtp_jax.config import check_choice

HELD_OUT = {1: 0.5, 4: 0.923}  # share of 2.65 MB of stories; 0.8 million tokens are trained on
LOSS = "bits_per_byte_1"


def get_config(epochs=1):
    """Returns the settings of one run.

    Args:
      epochs: 1 (at most) or 4, about; how often the run comes upon the same stories.
    """
    check_choice("config.epochs", str(epochs), map(str, HELD_OUT))
    config = head_sweep.get_config()
    config.data.validation_path = ""
    config.data.validation_fraction = HELD_OUT[epochs]
    return config


def study(seeds=(0, 1)):
    """Returns the study, which judges no claim."""
    cells = tuple(head_sweep.cell(seed, f"epochs={epochs}", f"model.num_heads={n}", experiment="epochs", epochs=epochs,
                                  num_heads=n) for seed in seeds for epochs in HELD_OUT for n in (1, 4))
    return Study("epochs", "Does the gain or cost of n heads shrink over several epochs?", cells,
                 study_measure.last_validation, (), plot, "about six core-minutes", columns=(LOSS, "head_loss_1"),
                 settings=f"{head_sweep.SETTINGS} Held out: "
                          + ", ".join(f"{share:.1%} of the stories for {epochs} epochs" for epochs, share in
                                      HELD_OUT.items()) + ".")


def plot(rows, folder):
    """Draws head 1's loss by epochs and n."""
    picture = study_plot.Picture()
    picture.lines(0, {f"n = {n}": study_plot.points(rows, "epochs", LOSS, num_heads=n) for n in (1, 4)},
                  x="epochs, about", y="held-out bits per byte of head 1")
    return [picture.save(folder / "epochs.png")]


if __name__ == "__main__":
    train.main(get_config)
