"""What do n heads gain or cost at each model size? The bar chart of the paper's first figure, and the table of n.

The paper's gains on MBPP and HumanEval grow with the size, from losses at 0.3B and 0.6B to 4.5 points at 13B (Table
S7). In small, the next-token loss of three tiny widths:

    python -m experiments.size_sweep --workdir=runs/width_128 --config.width=128 --config.model.num_heads=2
    python -m mtp_jax.study --experiment=size_sweep --workdir=runs/experiments

Hardware: 2 CPU cores, about 13 core-minutes, a fifth of it shared with head_sweep. Corpus as there.

The paper's sizes, each with its own recipe, on accelerators; data and tokenizer as in experiments.paper, and
python -m mtp_jax.evaluate --task=mbpp on each cell for the paper's measure:

    python -m mtp_jax.sweep --experiment=size_sweep \\
        --grid='config.size=0.3b,0.6b,1.3b,3b,6.7b,13b;config.model.num_heads=1,2,4' \\
        --workdir=gs://BUCKET/sizes --engine=gke ...

Expected: at these widths more heads cost next-token loss throughout; nothing here reaches a size at which they gain.
"""

from experiments import head_sweep
from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.study import Study

WIDTHS, HEADS, LOSS = (32, 64, 128), (1, 2, 4), "bits_per_byte_1"


def get_config(width=64, corpus="prose", size="small"):
    """Returns the settings of one run.

    Args:
      width: of the small model; the paper's sizes have their own.
      corpus: prose or code; see experiments.head_sweep.
      size: small, those of the study; or one of experiments.paper, with its recipe.
    """
    config = head_sweep.get_config(corpus=corpus, size=size)
    if size == "small":
        config.model.d_model = width
    return config


def study(seeds=(0, 1)):
    """Returns the study, which judges no claim."""
    cells = tuple(
        head_sweep.cell(seed, f"model.num_heads={n}", width=width, num_heads=n) if width == 64 else
        head_sweep.cell(seed, f"width={width}", f"model.num_heads={n}", experiment="size_sweep", width=width,
                        num_heads=n)
        for seed in seeds for width in WIDTHS for n in HEADS)
    return Study("size_sweep", "What do n heads gain or cost at each model size?", cells,
                 study_measure.last_validation, (), plot, "about 13 core-minutes", columns=(LOSS, "head_loss_1"),
                 settings=head_sweep.SETTINGS.replace("64 wide", f"{', '.join(map(str, WIDTHS))} wide"))


def plot(rows, folder):
    """Draws the gains over n = 1 by size, seed by seed, and the loss itself over n."""
    one = {(row["width"], row["seed"]): row[LOSS] for row in rows if row["num_heads"] == 1}
    gains = [{**row, "gain": one[row["width"], row["seed"]] - row[LOSS]} for row in rows]
    picture = study_plot.Picture(2)
    picture.bars(0, {f"n = {n}": study_plot.points(gains, "width", "gain", num_heads=n) for n in HEADS[1:]},
                 x="width of the model", y="gain over n = 1, bits per held-out byte")
    picture.lines(1, {f"{width} wide": study_plot.points(rows, "num_heads", LOSS, width=width) for width in WIDTHS},
                  x="n, heads trained", y="held-out bits per byte of head 1")
    return [picture.save(folder / "size_sweep.png")]


if __name__ == "__main__":
    train.main(get_config)
