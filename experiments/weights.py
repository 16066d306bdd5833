"""Should all heads train from the start? Constant weights, forward and reverse curriculum, DeepSeek's schedule.

Open question (a) of the paper's section 7. In the forward curriculum head 1 trains alone and one head more joins in
each quarter of the steps; the reverse one begins with four heads and ends with head 1 alone (Aynetdinov and Akbik 2025,
arXiv 2505.22757). DeepSeek-V3 gives the further heads a small weight that falls (arXiv 2412.19437).

    python -m experiments.weights --workdir=runs/forward --config.schedule=forward
    python -m mtp_jax.study --experiment=weights --workdir=runs/experiments

Hardware: 2 CPU cores, about 14 core-minutes, a quarter of it shared with head_sweep. Corpus and paper's sizes as in
experiments.head_sweep (--config.size=7b, and mtp_jax.sweep over config.schedule).

Expected: the forward curriculum keeps most of the tokens per forward of constant weights; the reverse one loses them
and has the better next-token loss.
"""

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Claim, Study, Verdict
from mtp_jax.intervals import mean_estimate

SCHEDULES = ("constant", "forward", "reverse", "deepseek")
KEPT = 0.5  # share of the constant weights' gain in tokens per forward that counts as kept
DRAFTED, AGREED, LOSS = "tokens_per_forward_4", "agreement_length_4", "bits_per_byte_1"


def get_config(schedule="forward", corpus="prose", size="small"):
    """Returns the settings of one run with four heads.

    Args:
      schedule: constant, forward, reverse or deepseek.
      corpus: prose or code; see experiments.head_sweep.
      size: small, that of the study; or one of experiments.paper, with its recipe.
    """
    config = head_sweep.get_config(corpus=corpus, size=size)
    config.model.num_heads = 4
    config.objective.schedule = schedule
    return config


def study(seeds=head_sweep.SEEDS):
    """Returns the study of claim S10."""
    cells = tuple(
        head_sweep.cell(seed, "model.num_heads=4", drafting=(), schedule=schedule) if schedule == "constant" else
        head_sweep.cell(seed, f"schedule={schedule}", experiment="weights", drafting=("heads=4",), schedule=schedule)
        for seed in seeds for schedule in SCHEDULES)
    claim = Claim(
        "S10", "A forward curriculum over four heads keeps acceptance; a reverse one loses it but has the better "
        "next-token loss.",
        study_measure.RULE.format(
            f"of decoding with four heads, the forward curriculum keeps more than {KEPT:.0%} of the constant weights' "
            "gain in tokens per forward over 1, and yields more than the reverse one; and head 1's held-out bits per "
            "byte are lower with the reverse curriculum than with the forward one"),
        judge)
    return Study("weights", "Should all heads train from the start?", cells, measure, (claim,), plot,
                 "about 14 core-minutes", columns=(DRAFTED, AGREED, LOSS),
                 settings=f"n = 4; {head_sweep.SETTINGS} {head_sweep.DRAFTED}")


def measure(folder):
    """Returns head 1's loss and tokens per forward."""
    found = study_measure.last_validation(folder)
    drafted = study_measure.evaluation(folder, "drafting")
    return {LOSS: found[LOSS], DRAFTED: drafted[DRAFTED], AGREED: drafted[AGREED]}


def judge(rows):
    """Applies the rule of S10."""
    drafted = {name: study_measure.column(rows, DRAFTED, schedule=name) for name in SCHEDULES}
    bits = {name: study_measure.column(rows, LOSS, schedule=name) for name in SCHEDULES}
    kept = mean_estimate([drafted["forward"][seed] - 1 - KEPT * (drafted["constant"][seed] - 1)
                          for seed in drafted["forward"]])
    ruled = {f"forward's gain in tokens per forward minus {KEPT:.0%} of constant's": kept,
             "forward minus reverse, tokens per forward": study_measure.difference(drafted["forward"],
                                                                                   drafted["reverse"]),
             "forward minus reverse, bits per byte of head 1": study_measure.difference(bits["forward"],
                                                                                        bits["reverse"])}
    beside = {"constant minus reverse, bits per byte of head 1": study_measure.difference(bits["constant"],
                                                                                          bits["reverse"])}
    sentence = "Tokens per forward and bits per byte of head 1: " + "; ".join(
        f"{name} {study_measure.mean_of(drafted[name]):.2f} and {study_measure.mean_of(bits[name]):.3f}"
        for name in SCHEDULES) + "."
    return Verdict(study_measure.outcome(list(ruled.values())), sentence, {**ruled, **beside})


def plot(rows, folder):
    """Draws both measures of each schedule."""
    picture = study_plot.Picture(2)
    picture.bars(0, {"": study_plot.points(rows, "schedule", DRAFTED)}, x="weights of the heads",
                 y="tokens per forward, four heads").set_ylim(bottom=1)
    picture.dots(1, study_plot.points(rows, "schedule", LOSS), x="weights of the heads",
                 y="held-out bits per byte of head 1")
    return [picture.save(folder / "weights.png")]


if __name__ == "__main__":
    train.main(get_config)
