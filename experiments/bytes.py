"""How far ahead can a byte-level model draft? 8, 16 or 32 heads with an unembedding each (sections 3.3 and 3.2).

The paper's byte models have a replicated unembedding, and 8 heads are best (Table 1); 6.39 times the speed at 7.04
bytes per forward on code (Table S3). In small, four heads on code and on prose and eight on code:

    python -m experiments.bytes --workdir=runs/bytes_8
    python -m mtp_jax.study --experiment=bytes --workdir=runs/experiments

Hardware: 2 CPU cores, about 14 core-minutes, a third of it shared with head_sweep. Prose is the corpus of
experiments.stories, code the running Python's standard library.

As the paper has it, 7B on 8192 bytes a row, over 8, 16 and 32 heads on accelerators; data as in experiments.paper:

    python -m mtp_jax.sweep --experiment=bytes --grid='config.num_heads=8,16,32' --config.size=7b \\
        --workdir=gs://BUCKET/bytes --engine=gke ...

The paper does not tell whether these heads have a layer each. Here they do, and 32 of them would be all of 32 layers:
half of the layers stay with the trunk, so that the model of 32 heads has 48.

Expected: more tokens per forward on code than on prose; more with more heads, each head adding less than the one before
it.
"""

from experiments import head_sweep
from mtp_jax import presets, train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Claim, Study, Verdict
from mtp_jax.intervals import mean_estimate

TRUNK = 2  # layers of the small model's, as with four heads in head_sweep
TRIED = {4: (2, 3, 4), 8: (2, 4, 8)}  # heads that draft, of so many
MODELS = (("prose", 4), ("code", 4), ("code", 8))


def get_config(num_heads=8, corpus="code", size="small"):
    """Returns the settings of one run.

    Args:
      num_heads: the paper has 8, 16 and 32.
      corpus: code or prose; see experiments.head_sweep.
      size: small, that of the study; or one of experiments.paper, trained by the byte models' recipe.
    """
    config = head_sweep.get_config(corpus=corpus, size=size)
    config.model.num_heads = num_heads
    if size == "small":
        config.model.num_layers = TRUNK + num_heads
    else:
        presets.apply_recipe(config, "bytes_7b")
        config.model.extra_trunk_layers = max(0, num_heads - config.model.num_layers // 2)
    config.model.unembedding = "replicated"
    return config


def study(seeds=head_sweep.SEEDS):
    """Returns the study of claim S6."""
    cells = []
    for seed in seeds:
        for corpus, n in MODELS:
            if n == 4:
                own = ("model.num_heads=4",) if corpus == "prose" else ("corpus=code", "model.num_heads=4")
                cells.append(head_sweep.cell(seed, *own, drafting=(), corpus=corpus, num_heads=n))
            else:
                heads = ",".join(map(str, TRIED[n]))
                cells.append(head_sweep.cell(seed, f"num_heads={n}", experiment="bytes", drafting=(f"heads={heads}",),
                                             corpus=corpus, num_heads=n))
    claim = Claim(
        "S6", "Drafts are accepted more often on code than on prose; tokens per forward rise with the heads that draft "
        "and saturate.",
        study_measure.RULE.format(
            "four heads have more tokens per forward on code than on prose; in each of the three models every further "
            "k tried has more tokens per forward than the one before, and each step's gain per head is smaller than "
            "that of the step before"),
        judge)
    return Study("bytes", "How far ahead can a byte-level model draft?", tuple(cells), measure, (claim,), plot,
                 "about 14 core-minutes", columns=(*(f"tokens_per_forward_{k}" for k in (2, 3, 4, 8)),
                                                   "agreement_length_4", "bits_per_byte_1"),
                 settings=f"prose: {head_sweep.SETTINGS} Code is the standard library of the running Python. The "
                          "models of 4 heads share an unembedding; that of 8 has one a head, and 10 layers, so that "
                          f"its trunk has 2 as well. {head_sweep.DRAFTED}")


def measure(folder):
    """Returns tokens per forward and head 1's loss."""
    return {"bits_per_byte_1": study_measure.last_validation(folder)["bits_per_byte_1"],
            **study_measure.evaluation(folder, "drafting")}


def judge(rows):
    """Applies the rule of S6."""
    drafted = {(corpus, n): {k: study_measure.column(rows, f"tokens_per_forward_{k}", corpus=corpus, num_heads=n)
                             for k in (1, *TRIED[n])} for corpus, n in MODELS}
    found = {"code minus prose, four heads": study_measure.difference(drafted["code", 4][4], drafted["prose", 4][4])}
    for (corpus, n), by_k in drafted.items():
        gains, tried = {}, list(by_k)
        for low, high in zip(tried, tried[1:]):
            gains[high] = {seed: (by_k[high][seed] - by_k[low][seed]) / (high - low) for seed in by_k[high]}
            found[f"{corpus}, n = {n}: gain per head from k = {low} to {high}"] = mean_estimate(
                list(gains[high].values()))
        for before, after in zip(tried[1:], tried[2:]):
            found[f"{corpus}, n = {n}: gain per head up to {before} minus up to {after}"] = study_measure.difference(
                gains[before], gains[after])
    sentence = "Tokens per forward with all heads: " + ", ".join(
        f"{study_measure.mean_of(by_k[n]):.2f} ({corpus}, n = {n})" for (corpus, n), by_k in drafted.items()) + "."
    return Verdict(study_measure.outcome(list(found.values())), sentence, found)


def plot(rows, folder):
    """Draws tokens per forward over the heads that draft, in the style of the paper's tables on decoding."""
    table = [{"k": k, "corpus": row["corpus"], "n": row["num_heads"], "yield": row[f"tokens_per_forward_{k}"]}
             for row in rows for k in (1, *TRIED[row["num_heads"]])]
    picture = study_plot.Picture()
    picture.lines(0, {f"{corpus}, n = {n}": study_plot.points(table, "k", "yield", corpus=corpus, n=n)
                      for corpus, n in MODELS}, x="k, heads that draft", y="bytes per forward")
    return [picture.save(folder / "bytes.png")]


if __name__ == "__main__":
    train.main(get_config)
