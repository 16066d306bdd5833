"""Does predicting several tokens let a model find the path on a star graph, where next-token prediction guesses?

Star graphs G(d, l) of Bachmann and Nagarajan (2024, "The pitfalls of next-token prediction"): all edges in random
order, then centre and goal, then the path of l nodes from one to the other; see mtp_jax/data/tasks/star_graph.py. Which
of the d arms leads to the goal shows only from its end. A model that is given the path so far learns to go along the
edges, which is easy, and has no need to look back from the goal for any node but the second: it guesses that one, and
is right one time in d. Heads that predict further must look ahead where they cannot go along.

The settings are those of the replication in "Predicting the Order of Upcoming Tokens" (2025, arXiv:2508.19228): 8
layers, 384 wide, 300,000 graphs, 100 passes over them. Names, batch and learning rate are those of its code.

    python -m experiments.star_graph --workdir=runs/star_graph --config.model.num_heads=2

Hardware: an accelerator. There the model grows with n, from 14M to 20M parameters, for heads are added to the trunk:
give it back its layers by --config.model.extra_trunk_layers, n - 1 of them. Expected, from that paper, share of paths
that are right for n = 1, 2, 4: G(3,3) 34, 100, 100 %; G(3,5) 33, 59, 100 %; G(5,3) 20, 20, 100 %. Not run by us.

In small, on 2 CPU cores, one run and the study of n = 1, 2, 4 with five seeds:

    python -m experiments.star_graph --workdir=runs/star_graph_small --config.size=small
    python -m mtp_jax.study --experiment=star_graph --workdir=runs/experiments

All n have as many parameters: layers of heads are taken from the trunk. A run reads each of its examples once.
Expected: n = 2 has all paths of G(3,3) right (seeds 100, 101, 102), and n = 1 one in three (seeds 101, 102).
"""

import dataclasses

from mtp_jax import train
from mtp_jax.config import default_config
from mtp_jax.evaluation import after_training
from mtp_jax.intervals import mean_estimate

SEEDS = (0, 1, 2, 3, 4)
NUM_HEADS = (1, 2, 4)
ARMS = 3
NEAR_CHANCE, OFF_CHANCE, FURTHER = 0.15, 0.15, 0.1
RULE = ("Share of whole held-out paths that are right, greedily written; chance is 1/d. Confirmed: the mean of n = 1 "
        f"lies within {NEAR_CHANCE} of chance, and for n = 2 or n = 4 the difference to n = 1, paired by seed, has a "
        f"95 % interval of Student's t above {FURTHER}. Not decidable at this size: no n has a mean more than "
        f"{OFF_CHANCE} above chance. Otherwise not confirmed.")
MINUTES = "about 20 core-minutes"
SETTINGS = ("G(3,3) with 10 names of one character; 64 wide, 6 layers in all, n - 1 of them those of further heads; "
            "2000 steps of 32 examples, each read once. One graph in sixteen is held out, whatever its goal and the "
            "order of its edges, and the 1000 test examples are made of these. The seed draws parameters, training "
            "examples and their order.")


def get_config(arms=3, length=3, nodes=0, size="14m", graphs_seed=0):
    """Returns the settings of one run.

    Args:
      arms: d.
      length: l, nodes of the path, centre and goal included.
      nodes: names that a graph's nodes are drawn from; 0: 50, or 10 for size=small.
      size: 14m, the replication's; or small, for a CPU.
      graphs_seed: of the training graphs.
    """
    from mtp_jax.config import check_choice
    from mtp_jax.data.tasks.options import write_options
    from mtp_jax.data.tasks.star_graph import StarGraph

    check_choice("config.size", size, ("14m", "small"))
    config = default_config()
    (small if size == "small" else replication)(config)
    options = StarGraph(arms=arms, length=length, nodes=nodes or (10 if size == "small" else 50), seed=graphs_seed)
    if size == "small":
        options = dataclasses.replace(options, held_out=1000, samples=config.train.num_steps * config.data.batch_size)
    config.data.source = "star_graph"
    config.data.options = write_options(options)
    config.data.validation_path = "validation"
    config.data.seq_len = options.tokens  # a row is one example
    config.objective.prompt_end = ord("=")  # only the path is learned
    return config


def replication(config):
    """Sets the model and the training of the replication."""
    config.model.num_heads = 2
    config.model.num_layers = 8
    config.model.d_model = 384
    config.model.num_attention_heads = 6
    config.data.batch_size = 256
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    config.optimizer.decay_ratio = 0.1
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.train.num_steps = 100 * 300_000 // 256
    config.train.checkpoint_every = 5000
    config.train.validate_every = 1000
    config.logging.log_every = 100


def small(config):
    """Sets the model and the training of the study."""
    config.model.num_heads = 2
    config.model.num_layers = 6
    config.model.d_model = 64
    config.model.d_ff = 128
    config.model.vocab_multiple = 1
    config.model.init_std = 0.06  # 0.02 is small for this width: no n gets off chance in as many steps
    config.data.batch_size = 32
    config.data.validation_batches = 30
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.train.num_steps = 2000
    config.train.checkpoint_every = 2000
    config.train.validate_every = 200
    config.logging.log_every = 50
    config.logging.tensorboard = False


def study(seeds=SEEDS):
    """Returns the study of claim S11.

    Args:
      seeds: of parameters, graphs and their order.
    """
    from mtp_jax.analysis import study_measure
    from mtp_jax.analysis.study import Cell, Claim, Study

    cells = tuple(Cell(f"num_heads={n},seed={seed}", "star_graph", tuple(f"--config.{setting}" for setting in (
        "size=small", f"arms={ARMS}", f"graphs_seed={seed}", f"model.num_heads={n}", f"train.seed={seed}",
        f"data.seed={seed}")),
        {"num_heads": n, "seed": seed})
        for seed in seeds for n in NUM_HEADS)
    claim = Claim("S11", "On star graphs next-token prediction stays near the chance of guessing an arm, and "
                  "multi-token prediction is clearly above it.", RULE, judge)
    return Study("star_graph", "Does predicting several tokens let a model find the path where next-token prediction "
                 "guesses the arm?", cells, lambda folder: study_measure.evaluation(folder, "star_graph"), (claim,),
                 plot, MINUTES, columns=("accuracy", "hard_node_accuracy"), settings=SETTINGS)


def judge(rows):
    """Applies the rule of S11."""
    from mtp_jax.analysis import study_measure
    from mtp_jax.analysis.study import CONFIRMED, NOT_CONFIRMED, UNDECIDABLE, Verdict

    chance = 1 / ARMS
    paths = {n: study_measure.column(rows, "accuracy", num_heads=n) for n in NUM_HEADS}
    means = {n: study_measure.mean_of(values) for n, values in paths.items()}
    gains = {n: study_measure.difference(paths[n], paths[1]) for n in NUM_HEADS[1:]}
    figures = {f"n = {n}, whole paths": mean_estimate([*paths[n].values()]) for n in NUM_HEADS}
    figures |= {f"n = {n} minus n = 1, whole paths, paired": gain for n, gain in gains.items()}
    if max(means.values()) <= chance + OFF_CHANCE:
        outcome = UNDECIDABLE
    elif abs(means[1] - chance) <= NEAR_CHANCE and any(gain.low > FURTHER for gain in gains.values()):
        outcome = CONFIRMED
    else:
        outcome = NOT_CONFIRMED
    sentence = ("Right paths: " + ", ".join(f"{means[n]:.0%} (n = {n})" for n in NUM_HEADS)
                + f"; guessing the arm gives {chance:.0%}.")
    return Verdict(outcome, sentence, figures)


def plot(rows, folder):
    """Draws right paths and right hard nodes over n, with what guessing an arm gives."""
    from mtp_jax.analysis import study_plot

    picture = study_plot.Picture()
    axis = picture.bars(0, {"whole path": study_plot.points(rows, "num_heads", "accuracy"),
                            "its hard node": study_plot.points(rows, "num_heads", "hard_node_accuracy")},
                        x="n, heads trained", y="share right on held-out graphs")
    axis.axhline(1 / ARMS, color="0.3", linestyle="--", linewidth=1, label="guessing the arm")
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False, fontsize=8.5)
    return [picture.save(folder / "star_graph.png")]


if __name__ == "__main__":
    train.main(get_config, measure=after_training("star_graph", batch_size=256, heads=1))
