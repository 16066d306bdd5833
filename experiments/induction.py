"""Does a second head help a very small model to repeat names it has read? (section 4.1, Figure 7)

Characters of held-out stories get random names of two tokens. After the first mention the second token of a name can be
told from the first by looking it up. Two layers of attention are enough for that, and models learn it sooner or later;
the question is whether n = 2 learns it sooner than n = 1.

    python -m experiments.induction --workdir=runs/induction_2 --config.num_heads=2
    python -m mtp_jax.evaluate --workdir=runs/induction_2 --task=induction --set=all_steps=true
    python -m mtp_jax.study --experiment=induction --workdir=runs/experiments

As it stands this is the small form, on made stories (mtp_jax/data/tasks/names_made.py): sentences from templates, with
names that were made for one story alone in a share of the stories and a dozen familiar names in the others.
--config.share=1 forces every model to learn induction, which takes the second head's advantage in the paper's
appendix J. Hardware: 2 CPU cores; one run takes about two minutes of one core.

The paper's form, on an accelerator: sizes 1m, 3m, 10m, 30m, 100m, 300m and 1b, on stories as JSONL, such as
those of experiments.stories, with a tokenizer trained on them:

    python -m mtp_jax.data.train_tokenizer --source=jsonl --path=data/childrens_stories/train.jsonl --vocab_size=512 \\
        --output=stories.json
    python -m experiments.induction --workdir=runs/induction_10m_1 --config.size=10m --config.num_heads=1 \\
        --config.path=data/childrens_stories/train.jsonl --config.held_out=data/childrens_stories/test.jsonl \\
        --config.data.tokenizer=stories.json

There a share of 0 leaves the names of the training stories as they are, as the paper does; a share above 0 replaces
them too. The paper trains on 26 billion tokens, and tells its accuracies in a picture only.

Expected, of the paper's own: n = 2 far above n = 1 up to 30M parameters, and from 100M on a little below. None of the
paper's sizes has been trained so long here; docs/experiments.md says what the small form gave.
"""

import json

from mtp_jax import presets, train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import CONFIRMED, NOT_CONFIRMED, UNDECIDABLE, Cell, Claim, Study, Verdict
from mtp_jax.config import check_choice, default_config
from mtp_jax.evaluation import after_training

SIZES = ("1m", "3m", "10m", "30m", "100m", "300m", "1b")
SEEDS = (0, 1, 2, 3, 4)
HEADS = (1, 2)
FLOOR, CEILING = 0.1, 0.95
EVALUATE = ("--task=induction", "--set=all_steps=true")
MINUTES = "about 22 core-minutes"
SETTINGS = ("made stories of a hundred tokens, half of them with names of their own; 128 wide, 5 layers in all, 8 "
            "rows of 128 tokens, 1600 steps; the seed draws parameters, stories and their order. Evaluated every 100 "
            "steps on 100 stories with names that no run trains on.")


def get_config(size="1m", num_heads=2, path="", held_out="", share=-1.0):
    """Returns the settings of one run.

    Args:
      size: of the paper's table of shapes: 1m, 3m, 10m, 30m, 100m, 300m or 1b.
      num_heads: n; the paper compares 1 and 2.
      path: JSONL of stories to train on, with the paper's recipe; empty: made stories, with one for CPU.
      held_out: JSONL of stories for validation and evaluation, where path is given.
      share: of the stories with names of two tokens made for each; below 0: 0.5 of made ones, none of those of path.
    """
    check_choice("config.size", size.lower(), SIZES)
    config = default_config()
    presets.apply_shape(config, size)
    config.model.num_heads = num_heads
    if path:
        presets.apply_recipe(config, "induction")
        config.data.source = "named_stories"
        config.data.path, config.data.validation_path = path, held_out
        config.data.options = f"share={max(share, 0.0)}"
        config.train.checkpoint_every = config.checkpoint.keep_every = 5000
        config.train.validate_every = 1000
        return config
    config.data.source = config.data.tokenizer = "made_stories"
    config.data.options = f"stories=40000,share={share if share >= 0 else 0.5}"
    config.data.validation_fraction = 0.01
    config.data.batch_size = 8
    config.data.seq_len = 128
    config.data.validation_batches = 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 1600
    config.train.checkpoint_every = config.checkpoint.keep_every = 100
    config.train.validate_every = 500
    config.logging.log_every = 50
    config.logging.tensorboard = False
    return config


def study(seeds=SEEDS):
    """Returns the study of claim S1."""
    cells = tuple(cell(n, seed) for seed in seeds for n in HEADS)
    claim = Claim(
        "S1", "At 1M parameters n = 2 learns induction sooner than n = 1, or better.",
        "Accuracy on the second token of a name after its first mention, over 100 held-out stories. n = 2 minus n = 1, "
        "paired by seed, 95 % intervals of Student's t, of (a) its mean over all checkpoints, a checkpoint every 100 "
        "steps, and (b) its value at the end of training. Not decidable at this size: the mean of (b) lies below "
        f"{FLOOR} for both n, or the mean of (a) above {CEILING} for both. Else confirmed: one of the two intervals "
        "lies above 0; the sentence says which. By chance alone this happens in at most 5 % of studies. Else not "
        "confirmed.", judge)
    return Study("induction", "Does a second head help a very small model to repeat names it has read?", cells, measure,
                 (claim,), plot, MINUTES,
                 columns=("accuracy", "best_accuracy", "mean_accuracy", "tokens_to_threshold", "head_2_accuracy"),
                 settings=SETTINGS)


def cell(num_heads, seed):
    """Returns one run of the study."""
    config = get_config()
    settings = (f"num_heads={num_heads}", f"train.seed={seed}", f"data.seed={seed}",
                f"data.options={config.data.options},seed={seed}")
    return Cell(f"num_heads={num_heads},seed={seed}", "induction", tuple(f"--config.{text}" for text in settings),
                {"num_heads": num_heads, "seed": seed}, evaluate=(EVALUATE,))


def measure(folder):
    """Returns what the evaluation of all checkpoints found, with the accuracy of each as accuracy@TOKENS."""
    found = study_measure.evaluation(folder, "induction")
    curve = json.loads((folder / "eval" / "induction.json").read_text())["curve"]
    return {**found, **{f"accuracy@{point['tokens']}": point["accuracy"] for point in curve}}


def judge(rows):
    """Applies the rule of S1."""
    final, mean = ({n: study_measure.column(rows, name, num_heads=n) for n in HEADS}
                   for name in ("accuracy", "mean_accuracy"))
    best = {n: study_measure.mean_of(study_measure.column(rows, "best_accuracy", num_heads=n)) for n in HEADS}
    found = {"n = 2 minus n = 1, mean accuracy over training": study_measure.difference(mean[2], mean[1]),
             "n = 2 minus n = 1, accuracy at the end": study_measure.difference(final[2], final[1])}
    ends, means = ({n: study_measure.mean_of(values[n]) for n in HEADS} for values in (final, mean))
    if max(ends.values()) < FLOOR or min(means.values()) > CEILING:
        outcome = UNDECIDABLE
    else:
        outcome = CONFIRMED if any(one.low > 0 for one in found.values()) else NOT_CONFIRMED
    told = "; ".join(f"{name} is {'above 0' if one.low > 0 else 'below 0' if one.high < 0 else 'not told from 0'}"
                     for name, one in found.items())
    return Verdict(outcome, "; ".join(f"n = {n}: {100 * ends[n]:.1f} % at the end, {100 * best[n]:.1f} % at the best "
                                      f"checkpoint, {100 * means[n]:.1f} % over training" for n in HEADS)
                   + f". {told}.", found)


def plot(rows, folder):
    """Draws accuracy over training tokens, and, like Figure 7, at the end."""
    places = [name for name in rows[0] if name.startswith("accuracy@")]
    picture = study_plot.Picture(2, title="Second tokens of names, after the first mention")
    picture.lines(0, {f"n = {n}": {int(name.partition("@")[2]) / 1e6: [row[name] for row in rows
                                                                       if row["num_heads"] == n] for name in places}
                      for n in HEADS}, x="million training tokens", y="accuracy", title="1M parameters")
    picture.bars(1, {f"n = {n}": {kind: [row[name] for row in rows if row["num_heads"] == n]
                                  for kind, name in (("end", "accuracy"), ("best checkpoint", "best_accuracy"))}
                     for n in HEADS}, x="", y="accuracy", title="1M parameters")
    return [picture.save(folder / "induction.png")]


if __name__ == "__main__":
    train.main(get_config, measure=after_training("induction", set=("all_steps=true",)))
