"""How should heads be wired? The rows of Table S4: linear, causal, anticausal and parallel heads, and a longer trunk.

    python -m experiments.architectures --workdir=runs/causal --config.row=causal
    python -m mtp_jax.study --experiment=architectures --workdir=runs/experiments

Hardware: 2 CPU cores, about eight core-minutes, a third of it shared with head_sweep. Corpus as there.

The paper's 7B models on 200B tokens of code, on accelerators; data and tokenizer as in experiments.paper, and
python -m mtp_jax.evaluate --task=mbpp (and humaneval, apps) on each cell for the paper's measure:

    python -m mtp_jax.sweep --experiment=architectures --config.size=7b \\
        --grid='config.row=next_token,linear,anticausal,causal,parallel,longer_trunk' \\
        --workdir=gs://BUCKET/architectures --engine=gke ...

Expected: the paper finds parallel heads best on most of its measures, and little in a longer trunk. Here linear heads
and the longer trunk have more layers before head 1, and so a better next-token loss.
"""

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Study
from mtp_jax.config import check_choice

ROWS = {  # settings of the model, as Table S4 has them
    "next_token": dict(num_heads=1), "linear": dict(head_kind="linear"), "anticausal": dict(head_kind="anticausal"),
    "causal": dict(head_kind="causal"), "parallel": {}, "longer_trunk": dict(extra_trunk_layers=3)}
SHARED = {"next_token": 1, "parallel": 4}  # heads of the rows that are runs of head_sweep
AHEAD = ("head_loss_2", "head_loss_3", "head_loss_4")


def get_config(row="parallel", corpus="prose", size="small"):
    """Returns the settings of one run.

    Args:
      row: of the table: next_token, linear, anticausal, causal, parallel or longer_trunk.
      corpus: prose or code; see experiments.head_sweep.
      size: small, that of the study; or one of experiments.paper, with its recipe.
    """
    check_choice("config.row", row, ROWS)
    config = head_sweep.get_config(corpus=corpus, size=size)
    config.model.num_heads = 4
    config.model.update(ROWS[row])
    return config


def study(seeds=(0, 1)):
    """Returns the study, which judges no claim."""
    cells = tuple(
        head_sweep.cell(seed, f"model.num_heads={SHARED[row]}", row=row) if row in SHARED else
        head_sweep.cell(seed, f"row={row}", experiment="architectures", row=row) for seed in seeds for row in ROWS)
    return Study("architectures", "How should heads be wired?", cells, study_measure.last_validation, (), plot,
                 "about eight core-minutes", columns=("bits_per_byte_1", *AHEAD, "expected_accepted_length"),
                 settings=f"n = 4 but for the first row; {head_sweep.SETTINGS} A longer trunk has 3 layers more.")


def plot(rows, folder):
    """Draws the next-token loss of each row, and what drafting would yield."""
    picture = study_plot.Picture(2)
    picture.dots(0, study_plot.points(rows, "row", "bits_per_byte_1"), x="", y="held-out bits per byte of head 1")
    picture.bars(1, {"": study_plot.points(rows, "row", "expected_accepted_length")}, x="",
                 y="tokens that a drafting step would yield").set_ylim(bottom=1)
    for axis in picture.axes:
        axis.tick_params(axis="x", rotation=30)
    return [picture.save(folder / "architectures.png")]


if __name__ == "__main__":
    train.main(get_config)
