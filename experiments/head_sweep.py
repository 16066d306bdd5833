"""What does training n heads cost the next token at a very small size? (n = 1, 2, 4; sections 3.1 and 3.4 in small.)

The paper's smallest models lose by n = 4, and n = 2 loses less (0.3B and 0.6B, Table S7). The number of layers stays as
it is: what the heads take the trunk loses, so that all n have as many parameters. One run, and the study:

    python -m experiments.head_sweep --workdir=runs/head_sweep_4 --config.model.num_heads=4
    python -m mtp_jax.study --experiment=head_sweep --workdir=runs/experiments

Hardware: 2 CPU cores, {minutes}. The corpus is that of experiments.stories, which says how it is made; it is looked for
in data/childrens_stories and ../shared/data/childrens_stories, and --config.data.path names another.

At the paper's size, over the same numbers of heads on accelerators (see docs/sweep.md; data and tokenizer as in
experiments.paper):

    python -m mtp_jax.sweep --experiment=head_sweep --grid='config.model.num_heads=1,2,4,6,8' --config.size=7b \\
        --workdir=gs://BUCKET/heads --engine=gke ...

Expected: head 1's held-out loss is higher with n = 4 than with n = 1, and n = 2 lies between.
"""

import pathlib

from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Cell, Claim, Study, Verdict
from mtp_jax.config import default_config

PROSE = ("data/childrens_stories", "../shared/data/childrens_stories")
SEEDS = (0, 1, 2, 3, 4)
SETTINGS = ("fairy tales as bytes, 64 wide, 6 layers in all, 8 rows of 128 bytes, 800 steps; the seed draws "
            "parameters and the order of the data.")
DRAFTED = ("128 held-out prompts of 64 bytes are continued by 32 bytes each, drawn at temperature 1: greedily so small "
           "a model writes the same words again and again, where any draft is accepted.")
STEPS = 800
MINUTES = "about nine core-minutes"


def get_config(corpus="prose", size="small"):
    """Returns the settings of one run.

    Args:
      corpus: prose (the fairy tales of experiments.stories) or code (the running Python's standard library).
      size: small, that of the studies; or one of experiments.paper, with its recipe and its data, whatever the corpus.
    """
    from mtp_jax.config import check_choice

    check_choice("config.corpus", corpus, ("prose", "code"))
    if size != "small":  # data are named there, as for experiments.paper
        return paper(size)
    config = small()
    if corpus == "code":
        config.data.source = "stdlib"
        return config
    config.data.source = "jsonl"
    folder = next((path for path in PROSE if pathlib.Path(path).exists()), PROSE[0])
    config.data.path = f"{folder}/train.jsonl"
    config.data.validation_path = f"{folder}/val.jsonl"
    return config


def small():
    """Returns the settings that the studies on text have in common."""
    config = default_config()
    config.model.num_heads = 4
    config.model.num_layers = 6
    config.model.d_model = 64
    config.model.d_ff_multiple = 8
    config.data.batch_size = 8
    config.data.seq_len = 128
    config.data.validation_batches = 64
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 60
    config.train.num_steps = config.train.checkpoint_every = config.train.validate_every = STEPS
    config.logging.log_every = 50
    config.logging.tensorboard = False
    return config


def paper(size):
    """Returns the settings of one of the paper's sizes."""
    from experiments import paper as full

    return full.get_config(size)


def cell(seed, *settings, experiment="head_sweep", drafting=None, **values):
    """Returns a cell of a study on text; its parameters and its data have the same seed.

    Args:
      seed: of both.
      settings: "PATH=VALUE" each.
      experiment: that is run.
      drafting: settings of the evaluation task of that name, "NAME=VALUE" each; None: it is not run.
      values: what tells the cell from others.
    """
    name = ",".join(f"{key}={value}" for key, value in {**values, "seed": seed}.items())
    evaluate = () if drafting is None else ((
        "--task=drafting", "--batch_size=64", "--temperature=1", *(f"--set={setting}" for setting in drafting)),)
    own = (*settings, f"train.seed={seed}", f"data.seed={seed}")
    return Cell(name, experiment, tuple(f"--config.{setting}" for setting in own), {**values, "seed": seed},
                evaluate=evaluate)


def study(seeds=SEEDS):
    """Returns the study of claim S5."""
    cells = tuple(cell(seed, f"model.num_heads={n}", num_heads=n) for seed in seeds for n in (1, 2, 4))
    claim = Claim("S5", "At a very small size training more heads worsens the next-token loss: n = 4 is worse than "
                  "n = 1, and n = 2 lies between.",
                  study_measure.RULE.format("head 1's held-out bits per byte are higher with n = 4 than with n = 1, "
                                            "higher with n = 2 than with n = 1, and higher with n = 4 than with n = 2"),
                  judge)
    return Study("head_sweep", "What does training n heads cost the next token at a very small size?", cells,
                 study_measure.last_validation, (claim,), plot, MINUTES, columns=("bits_per_byte_1", "head_loss_1"),
                 settings=SETTINGS)


def judge(rows):
    """Applies the rule of S5."""
    bits = {n: study_measure.column(rows, "bits_per_byte_1", num_heads=n) for n in (1, 2, 4)}
    found = {f"n = {high} minus n = {low}, bits per byte of head 1": study_measure.difference(bits[high], bits[low])
             for high, low in ((4, 1), (2, 1), (4, 2))}
    means = {n: study_measure.mean_of(values) for n, values in bits.items()}
    sentence = "Head 1 is at " + ", ".join(f"{means[n]:.3f} (n = {n})" for n in means) + " bits per held-out byte."
    return Verdict(study_measure.outcome(list(found.values())), sentence, found)


def plot(rows, folder):
    """Draws head 1's loss over n."""
    picture = study_plot.Picture()
    picture.lines(0, {"head 1": study_plot.points(rows, "num_heads", "bits_per_byte_1")}, x="n, heads trained",
                  y="held-out bits per byte of head 1")
    return [picture.save(folder / "head_sweep.png")]


if __name__ == "__main__":
    train.main(get_config)
