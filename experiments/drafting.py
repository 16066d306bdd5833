"""Do heads that train with the trunk draft better than heads that are added to a trunk trained for the next token?

Section 3.2 of the paper holds that pre-training with n heads makes better drafts than heads added later, as Medusa's.
Here both have the same layers in the end: a trunk of two and four heads of one. One model trains them all together. The
other trains trunk and head 1 on the next token, then three more heads, begun as copies of head 1, on the frozen trunk;
head 1 and the unembedding stay as they are. The same budget is the same number of tokens in all: half of them for trunk
and head 1, half for the added heads. Beside it, trunk and added heads get the joint model's steps each: twice the
budget.

    python -m experiments.head_sweep --workdir=runs/next_token --config.model.num_heads=1 --config.model.num_layers=3
    python -m experiments.drafting --workdir=runs/added --config.source_run=runs/next_token
    python -m mtp_jax.study --experiment=drafting --workdir=runs/experiments

Hardware: 2 CPU cores, about 14 core-minutes, a quarter of it shared with head_sweep. It goes on from any run with
parallel heads, also of the paper's sizes, with that run's data, recipe and steps.

Expected: more tokens per forward for the heads that trained with the trunk.
"""

import dataclasses

from experiments import finetune, head_sweep
from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Cell, Claim, Study, Verdict

JOINTLY, ADDED, TWICE = "jointly", "added", "added, twice the budget"
HALF = head_sweep.STEPS // 2
BOTH = ("tokens_per_forward_2", "tokens_per_forward_3", "tokens_per_forward_4")
AGREED = "agreement_length_4"


def get_config(source_run="", num_heads=4):
    """Returns the settings that add heads to a run whose trunk and heads stay as they are.

    Args:
      source_run: workdir of the run to start from; may lie in a bucket.
      num_heads: prediction heads of the new model, those of the source included.
    """
    source, _ = finetune.read_source(source_run)
    old = source.model.num_heads
    if num_heads <= old:
        raise ValueError(f"config.num_heads={num_heads} adds no head to the {old} of {source_run!r}: name more.")
    config = finetune.get_config(source_run, num_heads)
    for section in ("optimizer", "train"):
        for field, value in dataclasses.asdict(getattr(source, section)).items():
            config[section][field] = value
    config.objective.head_weights = (0.0,) * old + (1.0,) * (num_heads - old)
    config.train.trainable = ("heads/*",)
    config.init_from.heads = (*range(1, old + 1), *[1] * (num_heads - old))
    return config


def study(seeds=head_sweep.SEEDS):
    """Returns the study of claim S7."""
    cells = []
    for seed in seeds:
        joint = head_sweep.cell(seed, "model.num_heads=4", drafting=(), heads=JOINTLY)
        cells.append(joint)
        for heads, settings in ((ADDED, (f"train.num_steps={HALF}",)), (TWICE, ())):
            trunk = head_sweep.cell(seed, "model.num_heads=1", "model.num_layers=3", *settings,
                                    heads=f"none, before {heads}")
            # The order of the data is another than the trunk's.
            own = (f"--config.source_run={{{trunk.name}}}", f"--config.train.seed={seed}",
                   f"--config.data.seed={seed + 1000}")
            cells += [trunk, Cell(f"heads={heads},seed={seed}", "drafting", own, {"heads": heads, "seed": seed},
                                  evaluate=joint.evaluate)]
    claim = Claim("S7", "Heads trained with the trunk draft better than heads added to a frozen next-token trunk.",
                  study_measure.RULE.format("with four heads, decoding has more tokens per forward where the heads "
                                            "trained with the trunk than where they were added at the same budget, "
                                            "half of the steps for trunk and head 1 and half for the others"), judge)
    return Study("drafting", "Do heads that train with the trunk draft better than heads that are added to it?",
                 tuple(cells), measure, (claim,), plot, "about 14 core-minutes",
                 columns=(*BOTH, AGREED, "bits_per_byte_1"),
                 settings=f"{head_sweep.SETTINGS} The next-token model has 3 layers, its trunk's 2 and head 1; 3 heads "
                          "of a layer are added in as many further steps, trunk, head 1 and unembedding frozen: "
                          f"{HALF} and {HALF} steps, or for twice the budget {head_sweep.STEPS} and as many. "
                          + head_sweep.DRAFTED)


def measure(folder):
    """Returns tokens per forward, where there are several heads, and head 1's loss, where it trained."""
    found = study_measure.last_validation(folder)
    numbers = study_measure.evaluation(folder, "drafting") if "head_loss_2" in found else {}
    return {"bits_per_byte_1": found.get("bits_per_byte_1"), **{name: numbers.get(name) for name in (*BOTH, AGREED)}}


def judge(rows):
    """Applies the rule of S7."""
    drafted = {name: study_measure.column(rows, BOTH[-1], heads=name) for name in (JOINTLY, ADDED, TWICE)}
    found = study_measure.difference(drafted[JOINTLY], drafted[ADDED])
    sentence = "Tokens per forward with four heads: " + ", ".join(
        f"{study_measure.mean_of(values):.2f} ({name})" for name, values in drafted.items()) + "."
    return Verdict(study_measure.outcome([found]), sentence, {
        "jointly minus added, tokens per forward": found,
        f"jointly minus {TWICE}, tokens per forward": study_measure.difference(drafted[JOINTLY], drafted[TWICE])})


def plot(rows, folder):
    """Draws tokens per forward over the heads that draft."""
    table = [{"k": int(name[-1]), "heads": row["heads"], "yield": row[name]} for row in rows for name in BOTH]
    table += [{"k": 1, "heads": name, "yield": 1.0} for name in (JOINTLY, ADDED, TWICE)]
    picture = study_plot.Picture()
    picture.lines(0, {name: study_plot.points(table, "k", "yield", heads=name) for name in (JOINTLY, ADDED, TWICE)},
                  x="k, heads that draft", y="tokens per forward")
    return [picture.save(folder / "drafting.png")]


if __name__ == "__main__":
    train.main(get_config)
