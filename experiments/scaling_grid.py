"""A grid for scaling laws: how the loss falls with parameters N, tokens D, heads n and loops T_m.

Question: what of the laws of docs/scaling.md holds for very small models? Four sizes, n = 1, 2, 4, 8 heads and
T_m = 1, 2, 4 loops of the trunk: 48 runs, each of 0.4 million bytes of fairy tales, on which no byte is read twice.
Hardware: two CPU cores.

    python -m mtp_jax.study --experiment=scaling_grid --workdir=runs/experiments --parallel=2

trains the grid and fits the laws; MINUTES says how long. One run of it:

    python -m experiments.scaling_grid --workdir=runs/grid --config.width=80 --config.model.num_heads=4 \\
        --config.model.loops=2

Every model has ten layers, trunk and heads together, so that N depends neither on n nor on T_m. The learning rate is
that of a WSD schedule: up to the last fifth of a run it does not fall, so that there the loss along a run can stand for
the last losses of shorter runs. It is lower for wider models, by the root of the width, and the same for all n and T_m.
Expected: the held-out loss of head 1 falls with N and D; what else holds is in docs/scaling.md.
"""

from mtp_jax import train
from mtp_jax.analysis import study_measure, study_plot
from mtp_jax.analysis.scaling.report import report
from mtp_jax.analysis.study import CELLS_FOLDER, Cell, Study, folder_names

WIDTHS = (48, 80, 128, 200)  # 0.28, 0.77, 1.97 and 4.8 million parameters outside embedding and unembedding
HEADS = (1, 2, 4, 8)
LOOPS = (1, 2, 4)
STEPS = 400
SETTINGS = "fairy tales as bytes, ten layers, 8 rows of 128 bytes, 400 steps of a WSD schedule"
MINUTES = "117 core-minutes, an hour on 2 cores"


def get_config(width=128):
    """Returns the settings of one run.

    Args:
      width: of the residual stream; one of WIDTHS in the grid.
    """
    from experiments import head_sweep

    config = head_sweep.get_config()
    config.model.num_layers = 10
    config.model.num_heads = 1
    config.model.d_model = width
    config.model.trunk_kind = "looped"
    config.objective.exit_entropy = 0.05
    config.data.validation_batches = 8
    config.optimizer.schedule = "wsd"
    config.optimizer.learning_rate = 4e-3 * (48 / width) ** 0.5
    config.optimizer.warmup_steps = 40
    config.train.num_steps = config.train.checkpoint_every = STEPS
    config.train.validate_every = 25
    config.logging.log_every = 25
    return config


def study():
    """Returns the grid, the runs without a loop first; it judges no claim, it gives the laws their points."""
    cells = tuple(cell(width, heads, loops) for loops in LOOPS for width in WIDTHS for heads in HEADS)
    return Study("scaling_grid", "How does the loss fall with parameters, tokens, heads and loops?", cells,
                 study_measure.last_validation, (), plot, MINUTES, columns=("head_loss_1",), settings=SETTINGS)


def cell(width, heads, loops):
    """Returns one run of the grid."""
    settings = (f"width={width}", f"model.num_heads={heads}", f"model.loops={loops}")
    values = {"d_model": width, "num_heads": heads, "loops": loops}
    return Cell(",".join(f"{name}={value}" for name, value in values.items()), "scaling_grid",
                tuple(f"--config.{setting}" for setting in settings), values)


def plot(rows, folder):
    """Draws the last losses of head 1, and fits the laws to all points of the cells that are there."""
    picture = study_plot.Picture(len(LOOPS))
    for panel, loops in enumerate(LOOPS):
        curves = {f"n = {n}": {row["d_model"]: [row["head_loss_1"]] for row in rows
                               if (row["num_heads"], row["loops"]) == (n, loops)} for n in HEADS}
        picture.lines(panel, {label: points for label, points in curves.items() if points}, x="width",
                      y="last held-out loss of head 1, nats a byte", title=f"T = {loops}")
    paths = [picture.save(folder / "scaling_grid.png")]
    cells = folder.parent / CELLS_FOLDER
    folders = [cells / name for name in folder_names(study()).values() if (cells / name).exists()]
    (folder / "report.md").write_text(report(folders, folder))
    return [*paths, folder / "report.md"]


if __name__ == "__main__":
    train.main(get_config)
