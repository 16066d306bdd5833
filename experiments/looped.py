"""What does running one trunk several times do to the loss, and what is a learned gate to leave it early worth?

A looped trunk runs its layers T_m times, with the same weights; after every loop the final norm's output goes to the
heads, to an exit gate and into the next loop (Zhu et al. 2025, "Scaling Latent Reasoning via Looped Language Models";
docs/looped.md). Stage I trains everything on the loss that is expected under the gate, less beta times the entropy of
the gate's exits. Stage II trains the gate alone, to go on where another loop still lowers head 1's loss.

    python -m experiments.looped --workdir=runs/looped --config.loops=4
    python -m experiments.looped --workdir=runs/looped_gate --config.gate_of=runs/looped
    python -m mtp_jax.evaluate --workdir=runs/looped_gate --task=early_exit
    python -m mtp_jax.generate --workdir=runs/looped_gate --exit_threshold=0.5 --prompt="((1011*0110)+0111)="

Hardware: two CPU cores. The small size has a trunk of one layer, all that there is but heads (of kind medusa, whose
head 1 has no layer), and computes with polynomials as experiments.polynomial, F_2[X]/(X^4), one or two operations: what
has to be worked out in several steps is where depth should tell. A run takes about a core-minute, the study of
T_m = 1, 2, 4, of n = 1 and 4, of both stages and of early exit about four core-minutes:

    python -m mtp_jax.study --experiment=looped --workdir=runs/experiments

The source's sizes, on accelerators: config.size=53m, 134m, 374m, 778m, 1.364b and 1.4b, config.loops=2, 4 or 8, with
its recipe (mtp_jax/presets.py, which says what of it is our choice), on your corpus with a tokenizer of at most 49,152
ids. The source begins with 8 loops and beta 0.1, and goes on with 4 loops and beta 0.05, for 8 gave spikes of the loss:

    python -m experiments.looped --workdir=runs/374m --config.size=374m --config.loops=8 \\
        --config.data.source=prepared --config.data.path=gs://BUCKET/CORPUS --config.data.tokenizer=tokenizer.json
    python -m experiments.looped --workdir=runs/374m_4 --config.size=374m --config.loops=4 \\
        --config.init_from.path=runs/374m --config.objective.exit_entropy=0.05

with the data as above. A plain run goes on as a looped one in the same way (its gate starts fresh). Looped models want
a lower learning rate than plain ones. None of the source's sizes has been trained here.

Expected, of the small size with n = 1 (seed 1), held-out nats a token of an answer: 0.307 with T_m = 1; 0.363 and 0.245
after the two loops of T_m = 2; 0.467, 0.239, 0.230 and 0.231 after the four of T_m = 4. The gate of T_m = 4 loses more
than it saves here, for a reason that docs/looped.md gives; Stage II makes it better.
"""

from mtp_jax import presets, train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.loss_plot import read_metrics
from mtp_jax.analysis.study import CONFIRMED, NOT_CONFIRMED, Cell, Claim, Study, Verdict

LOOPS = (1, 2, 4)
RUNS = ((1, 1), (1, 2), (1, 4), (4, 1), (4, 4))  # n, T_m
STEPS = 800
SEEDS = (1,)
GATE_SHARE = 4  # Stage I has so many times the steps of Stage II
GAMMA = 0.005  # nats that a loop must gain to be worth it, as in Stage II
SPAN = 0.5  # loops a token that thresholds must move
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
EVALUATE = ("--task=early_exit", "--set=rows=256", "--batch_size=128",
            f"--set=thresholds={','.join(map(str, THRESHOLDS))}")
MINUTES = "about four core-minutes"
SETTINGS = ("F_2[X]/(X^4), one and two operations, of which answers alone count; a trunk of one layer, 64 wide, "
            "QK-norm, medusa heads, 8 rows of 128 characters, 800 steps, beta 0.05. Stage II: 200 steps of the gate.")


def get_config(size="small", loops=4, gate_of=""):
    """Returns the settings of one run.

    Args:
      size: small, for CPU; or one of the source's: 53m, 134m, 374m, 778m, 1.364b, 1.4b.
      loops: T_m, times that the trunk is run; 1 is a plain model.
      gate_of: workdir of a Stage I run, whose gate alone is trained (Stage II); size and loops are that run's then.
    """
    from mtp_jax.config import check_choice

    check_choice("config.size", size.lower(), ("small", *presets.LOOPED_SHAPES))
    if gate_of:
        return stage_two(gate_of)
    return small(loops) if size.lower() == "small" else full(size, loops)


def small(loops):
    """Returns the settings of the study's Stage I."""
    from experiments import polynomial

    config = polynomial.get_config("small")
    config.model.num_heads = config.model.num_layers = 1
    config.model.head_kind = "medusa"
    config.model.trunk_kind = "looped"
    config.model.loops = loops
    config.objective.exit_entropy = 0.05
    config.train.num_steps = config.train.checkpoint_every = STEPS
    return config


def full(size, loops):
    """Returns the settings of one of the source's sizes."""
    from experiments import paper

    config = paper.get_config("0.3b")  # data, numerics and cadence; the rest is written over
    presets.apply_looped(config, size, loops)
    return config


def stage_two(source_run):
    """Returns the settings that train the gate of a run, whose other parameters stay as they are."""
    from experiments import finetune
    from mtp_jax.config import Config, to_config_dict

    source, _ = finetune.read_source(source_run, "config.gate_of")
    if source.model.loops == 1:
        raise ValueError(f"config.gate_of={source_run!r} is a run of model.loops=1, which has no exit gate: name one "
                         "that was trained with --config.loops=2 or more.")
    config = to_config_dict(Config(**{section: getattr(source, section) for section in (*finetune.KEPT, "logging")}))
    config.objective.loop_objective = "gate"
    config.objective.head_weights = (1.0,) + (0.0,) * (source.model.num_heads - 1)  # it looks at head 1 alone
    config.init_from.path = source_run
    config.train.trainable = ("gate/*",)
    config.train.num_steps = max(1, source.train.num_steps // GATE_SHARE)
    config.train.checkpoint_every, config.train.validate_every = config.train.num_steps, config.train.num_steps
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = config.train.num_steps // 10
    return config


def study(seeds=SEEDS):
    """Returns the study of claims L1 and L2."""
    cells = []
    for seed in seeds:
        for heads, loops in RUNS:
            values = {"num_heads": heads, "loops": loops, "stage": "I", "seed": seed}
            own = (f"loops={loops}", f"model.num_heads={heads}", f"train.seed={seed}", f"data.seed={seed}")
            deep = (heads, loops) == (1, LOOPS[-1])
            first = cell(values, own, EVALUATE if deep else None)
            cells.append(first)
            if deep:
                cells.append(cell({**values, "stage": "II"}, (f"gate_of={{{first.name}}}",), EVALUATE))
    claims = (
        Claim("L1", "In a looped trunk the loss falls with the loop.",
              "Confirmed: in every run of Stage I with T_m = 2 or 4 head 1's held-out loss is lower after the last "
              f"loop than after the first, and after no loop more than {GAMMA} nats above the loop before. Else not "
              "confirmed.", judge_loops),
        Claim("L2", "Early exit trades the loss for loops.",
              "Confirmed: with the gates of both stages of every run with n = 1, T_m = 4, over rising thresholds the "
              f"loops a token never fall and rise by at least {SPAN} in all, and the loss at the highest threshold is "
              "below that at the lowest. Else not confirmed.", judge_exit))
    return Study("looped", "What does running one trunk several times do to the loss?", tuple(cells), measure, claims,
                 plot, MINUTES, columns=("head_loss_1", "head_1_loop_1", "head_1_loop_2", "head_1_loop_3",
                                         "head_1_loop_4", "exit_1", "exit_2", "exit_3", "exit_4"), settings=SETTINGS)


def cell(values, settings, evaluate):
    """Returns a cell of the study."""
    return Cell(",".join(f"{name}={value}" for name, value in values.items()), "looped",
                tuple(f"--config.{setting}" for setting in settings), values,
                evaluate=() if evaluate is None else (evaluate,))


def measure(folder):
    """Returns the last validation, head K's loss after loop T, the share of tokens that leave after it, and what the
    task early_exit found."""
    found = study_measure.last_validation(folder)
    last = [record for record in read_metrics(folder) if record["split"] == "validation"][-1]
    for loop, numbers in last.get("loops", {}).items():
        found |= {f"head_{k}_loop_{loop}": loss for k, loss in enumerate(numbers["head_loss"], 1) if loss is not None}
        found[f"exit_{loop}"] = last["exit_share"][int(loop) - 1]
    deep = (len(last["head_loss"]), len(last.get("loops", ()))) == (1, LOOPS[-1])
    return found | (study_measure.evaluation(folder, "early_exit") if deep else {})


def by_loop(row):
    """Returns {loop: held-out loss of head 1 after it}."""
    return {loop: row[f"head_1_loop_{loop}"] for loop in range(1, row["loops"] + 1)}


def judge_loops(rows):
    """Applies the rule of L1."""
    found, holds = {}, True
    for row in rows:
        if row["stage"] == "I" and row["loops"] > 1:
            losses = list(by_loop(row).values())
            name = f"n = {row['num_heads']}, T = {row['loops']}, seed {row['seed']}"
            found[f"{name}: head 1 after each loop, nats"] = ", ".join(f"{loss:.4f}" for loss in losses)
            holds &= losses[-1] < losses[0] and all(b - a <= GAMMA for a, b in zip(losses, losses[1:]))
    gains = [row["head_1_loop_1"] - row[f"head_1_loop_{row['loops']}"] for row in rows
             if row["stage"] == "I" and row["loops"] > 1]
    return Verdict(CONFIRMED if holds else NOT_CONFIRMED, "From the first loop to the last head 1's loss falls by "
                   f"{min(gains):.4f} to {max(gains):.4f} nats.", found)


def curve(row):
    """Returns [(loops a token, head 1's loss)] of a row by rising threshold."""
    return [(row[f"loops@q={q:g}"], row[f"head_1_nats@q={q:g}"]) for q in THRESHOLDS]


def judge_exit(rows):
    """Applies the rule of L2."""
    found, holds = {}, True
    for row in rows:
        if (row["num_heads"], row["loops"]) == (1, LOOPS[-1]):
            points = curve(row)
            loops = [one for one, _ in points]
            holds &= all(a <= b for a, b in zip(loops, loops[1:])) and loops[-1] - loops[0] >= SPAN
            holds &= points[-1][1] < points[0][1]
            name = f"stage {row['stage']}, seed {row['seed']}"
            found[f"{name}: loops a token and nats"] = "; ".join(f"{one:.2f} {loss:.4f}" for one, loss in points)
    return Verdict(CONFIRMED if holds else NOT_CONFIRMED, f"Thresholds from {THRESHOLDS[0]} to {THRESHOLDS[-1]}; all "
                   "loops and each fixed number of them are in the picture.", found)


def plot(rows, folder):
    """Draws the loss after each loop, and the curves of early exit, of the first seed."""
    picture = study_plot.Picture(2)
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    after = {}
    for row in first:
        if row["stage"] == "I":
            points = by_loop(row) if row["loops"] > 1 else {1: row["head_loss_1"]}
            after[f"n = {row['num_heads']}, T = {row['loops']}"] = {loop: [loss] for loop, loss in points.items()}
    picture.lines(0, after, x="loop t", y="held-out loss of head 1, nats", title="after each loop")
    drawn = {}
    for row in first:
        if (row["num_heads"], row["loops"]) == (1, LOOPS[-1]):
            drawn[f"gate of stage {row['stage']}"] = {loops: [loss] for loops, loss in curve(row)}
            drawn["the same number for all"] = {loops: [row[f"head_1_nats@loops={loops}"]]
                                                for loops in range(1, LOOPS[-1] + 1)}
    axis = picture.lines(1, drawn, x="loops a token", y="held-out loss of head 1, nats",
                         title=f"early exit, n = 1, T = {LOOPS[-1]}")
    axis.set_xticks(range(1, LOOPS[-1] + 1), [str(loops) for loops in range(1, LOOPS[-1] + 1)])
    return [picture.save(folder / "looped.png")]


if __name__ == "__main__":
    train.main(get_config)
