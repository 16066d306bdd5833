"""Points of scaling laws: from tables and workdirs, with conditions and hold-outs, and what is said of bad ones."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from mtp_jax.analysis.scaling.points import Points, held_out, join, matches, read_csv
from mtp_jax.analysis.scaling.workdirs import phase, read_workdirs, sizes
from mtp_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig, to_dict

PUBLISHED = pathlib.Path(__file__).resolve().parents[3].parent / "shared" / "data" / "scaling"
TABLE = """name,N_params,D_tokens,val_loss,kept,set
a,1e6,1e8,3.5,1,c4
b,2e6,1e8,3.25,1,web
c,4e6,2e8,3.0,0,web
"""
OWN = {"N": "N_params", "D": "D_tokens", "loss": "val_loss"}


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def make(**columns):
    """Returns three runs of two sizes with two points each."""
    base = {"run": list("aabbcc"), "N": [1e6, 1e6, 4e6, 4e6, 4e6, 4e6], "D": [1e8, 2e8] * 3,
            "loss": [4, 3.5, 3.2, 3, 3.1, 2.9]}
    return Points({name: np.asarray(values) for name, values in {**base, **columns}.items()})


def test_a_table_is_read_with_its_own_names(tmp_path):
    points = read_csv(write(tmp_path, TABLE), columns=OWN, run="name")
    assert points.runs == ("a", "b", "c") and len(points) == 3
    np.testing.assert_array_equal(points["N"], [1e6, 2e6, 4e6])
    np.testing.assert_array_equal(points["loss"], [3.5, 3.25, 3.0])
    for name in ("n", "head", "T", "loop"):
        np.testing.assert_array_equal(points[name], 1)


def test_a_row_without_a_run_is_one(tmp_path):
    assert read_csv(write(tmp_path, TABLE), columns=OWN).runs == ("line 2", "line 3", "line 4")


def test_columns_under_their_own_names_are_taken(tmp_path):
    points = read_csv(write(tmp_path, "\ufeffN,D,loss,n,T,run\n1,2,3,4,2,x\n5,6,7,8,4,x\n"))
    assert points.runs == ("x",)
    np.testing.assert_array_equal([points["n"], points["T"], points["loop"]], [[4, 8], [2, 4], [2, 4]])


@pytest.mark.parametrize("keep, runs", [(["kept=1"], "ab"), (["set=web"], "bc"), (["set!=web"], "a"),
                                        (["val_loss>=3.25", "kept=1.0"], "ab"), (["N_params < 2e6"], "a")])
def test_rows_are_kept_by_conditions(keep, runs, tmp_path):
    assert read_csv(write(tmp_path, TABLE), columns=OWN, run="name", keep=keep).runs == tuple(runs)


@pytest.mark.parametrize("text, columns, keep, message", [
    (TABLE, {}, [], r"no column 'N' for N; it has name, .*Did you mean \"N_params\"\? .*--columns=N=N_params"),
    (TABLE, {**OWN, "loss": "loss"}, [], "no column 'loss' for loss.*--columns=loss=val_loss"),
    (TABLE, {**OWN, "M": "x"}, [], "--columns='M' is not one of"),
    (TABLE.replace("3.25", "nan"), OWN, [], r"table.csv, line 3, column val_loss: loss is nan, which is not finite"),
    (TABLE.replace("3.25", "inf"), OWN, [], "line 3, column val_loss: loss is inf"),
    (TABLE.replace("3.25", "-1"), OWN, [], "line 3, column val_loss: loss is -1 and must be above 0"),
    (TABLE.replace("2e6", "0"), OWN, [], "line 3, column N_params: N is 0 and must be above 0"),
    (TABLE.replace("2e8", "-2e8"), OWN, [], "line 4, column D_tokens: D is -2e[+]08 and must be above 0"),
    (TABLE.replace("3.25", "n/a"), OWN, [], "line 3, column val_loss: 'n/a' is no number"),
    (TABLE + "d,1e6\n", OWN, [], "line 5, column D_tokens: None is no number"),
    (TABLE, OWN, ["keep=1"], r"no column 'keep' for the condition 'keep=1'.*Did you mean \"kept\""),
    (TABLE, OWN, ["kept=7"], "has no row with kept=7"),
    (TABLE, OWN, ["kept"], "'kept' is no condition: write it as COLUMN=VALUE"),
    (TABLE, OWN, ["set>web"], "'web' is no number"),
    ("N,D,loss\n", {}, [], "has no row[.]"),
])
def test_bad_tables_are_told(text, columns, keep, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_csv(write(tmp_path, text), columns=columns, keep=keep)


def test_what_is_left_out_may_be_bad(tmp_path):
    assert len(read_csv(write(tmp_path, TABLE.replace("3.0,0", "nan,0")), columns=OWN, keep=["kept=1"])) == 2


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published points beside the repository")
def test_published_points_are_read():
    points = read_csv(PUBLISHED / "chinchilla_points.csv", columns={"N": "N_params", "D": "D_tokens"},
                      keep=["kept_in_epoch_fit=1"])
    assert len(points) == len(points.runs) == 240 and not points.along_runs()
    points = read_csv(PUBLISHED / "gadre2024_openlm_testbed.csv", run="name", keep=["train_dataset=c4_original"],
                      columns={"N": "N_params", "D": "D_tokens", "loss": "loss_c4_val"})
    assert len(points) == 34 and held_out(points, "N>1e9").sum() == 3 and held_out(points, "largest_N").sum() == 1


@pytest.mark.parametrize("columns, message", [
    ({"loss": [1, 2, 3, np.nan, 5, 6]}, r"point 4 \(b\): loss is nan"),
    ({"n": [1, 1]}, r"column n has the shape \(2,\), and loss has 6 values"),
    ({"D": [0, 1, 1, 1, 1, 1]}, r"point 1 \(a\): D is 0"),
])
def test_bad_points_are_told(columns, message):
    with pytest.raises(ValueError, match=message):
        make(**columns)
    with pytest.raises(ValueError, match="no column N, D"):
        Points({"run": np.array(["a"]), "loss": np.ones(1)})
    with pytest.raises(ValueError, match="no column 'lop'.*Did you mean \"loop\""):
        make()["lop"]


def test_points_are_selected_and_joined():
    points = make()
    part = points.select(points["N"] > 2e6)
    assert part.runs == ("b", "c") and len(part) == 4 and points.along_runs()
    assert not part.select([1, 3]).along_runs()
    both = join([part, make(N_rec=np.ones(6))])
    assert len(both) == 10 and "N_rec" not in both.columns
    with pytest.raises(ValueError, match="no points to join"):
        join([])


@pytest.mark.parametrize("selector, mask", [
    ("", [0, 0, 0, 0, 0, 0]), ("largest_N", [0, 0, 1, 1, 1, 1]), ("last_half", [0, 1, 0, 1, 0, 1]),
    ("largest_N,last_half", [0, 1, 1, 1, 1, 1]), ("D>1e8", [0, 1, 0, 1, 0, 1]), ("run=b", [0, 0, 1, 1, 0, 0]),
    ("largest_T", [1, 1, 0, 0, 0, 0]), ("largest_n", [0, 0, 0, 0, 1, 1]),
])
def test_points_are_held_out(selector, mask):
    points = make(T=[4, 4, 1, 1, 1, 1], n=[1, 1, 1, 1, 8, 8])
    np.testing.assert_array_equal(held_out(points, selector), np.asarray(mask, bool))


def test_a_fraction_holds_out_whole_runs():
    points = make()
    masks = [held_out(points, "fraction=0.3", seed=seed) for seed in range(8)]
    for mask in masks:
        assert mask.sum() == 2 and len(set(points["run"][mask])) == 1
    assert len({mask.tobytes() for mask in masks}) == 3
    np.testing.assert_array_equal(masks[3], held_out(points, "fraction=0.3", seed=3))


@pytest.mark.parametrize("selector, message", [
    ("largest_M", "--hold_out='largest_M' is not one of"),
    ("last_haf", "Did you mean \"last_half\""), ("fraction=1.5", "must lie between 0 and 1"),
    ("N>1", "holds out all points: none is left"), ("N>1e12", "holds out no point"), ("M>1", "no column 'M'"),
])
def test_bad_hold_outs_are_told(selector, message):
    with pytest.raises(ValueError, match=message):
        held_out(make(), selector)
    with pytest.raises(ValueError, match="A run with one point has no last half"):
        held_out(make().select([0, 2, 4]), "last_half")


def test_conditions_compare_text_and_numbers():
    columns = {"phase": np.array(["stable", "decay"]), "N": np.array([1.0, 2.0])}
    np.testing.assert_array_equal(matches(columns, "phase=stable"), [True, False])
    np.testing.assert_array_equal(matches(columns, "N<=1"), [True, False])


# Workdirs.

MODEL = ModelConfig(num_heads=4, num_layers=10, d_model=16, num_attention_heads=2, d_ff=24, vocab_size=259)


def write_run(folder, records, model=MODEL, **sections):
    """Writes a workdir without checkpoints, of 2 rows of 8 tokens a step."""
    config = Config(model=model, optimizer=OptimizerConfig(schedule="wsd", warmup_steps=4, decay_fraction=0.25),
                    train=TrainConfig(num_steps=16), **sections)
    values = to_dict(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2, seq_len=8)))
    del values["model"]["trunk_kind"]  # as in workdirs of older versions
    if model.trunk_kind != "plain":
        values["model"]["trunk_kind"] = model.trunk_kind
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**values, "version": "0.1.0"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def line(step, losses, **more):
    return {"step": step, "split": "validation", "loss": sum(filter(None, losses)), "head_loss": losses, **more}


def test_a_runs_points_come_from_its_validation_lines(tmp_path):
    records = [{"step": 4, "split": "train", "loss": 9.0, "head_loss": [9.0] * 4},
               *(line(step, [4 - step / 8, 5, 6, None]) for step in (4, 8, 12, 16))]
    folder = write_run(tmp_path / "one", records)
    points = read_workdirs([folder, f"{folder}/"])
    np.testing.assert_array_equal(points["loss"], [3.5, 3, 2.5, 2])
    np.testing.assert_array_equal(points["D"], [64, 128, 192, 256])
    assert points["phase"].tolist() == ["warmup", "stable", "stable", "decay"] and points.runs == ("one",)
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16  # attention, MLP, two norms
    for name, layers in {"N": 10, "N_rec": 6, "N_once": 1, "N_head1": 7}.items():
        np.testing.assert_array_equal(points[name], layers * layer)
    np.testing.assert_array_equal([points["n"], points["T"]], [[4] * 4, [1] * 4])
    heads = read_workdirs([folder], loss="head_k")
    assert len(heads) == 12 and set(heads["head"]) == {1, 2, 3}  # head 4 rests
    np.testing.assert_array_equal(heads["loss"][heads["head"] == 3], 6)
    np.testing.assert_array_equal(read_workdirs([folder], loss="head_2")["loss"], 5)
    np.testing.assert_array_equal(read_workdirs([folder], loss="total")["loss"], [14.5, 14, 13.5, 13])
    np.testing.assert_array_equal(read_workdirs([folder], loss="task")["loss"], [14.5, 14, 13.5, 13])
    assert len(read_workdirs([folder], loss="loop")) == 4


def test_a_looped_run_has_losses_of_each_loop(tmp_path):
    model = dataclasses.replace(MODEL, num_heads=1, trunk_kind="looped", loops=2)
    loops = {"1": {"head_loss": [3.5]}, "2": {"head_loss": [3.0]}}
    folder = write_run(tmp_path / "looped", [line(8, [3.0], loss=3.1, task_loss=3.2, loops=loops)], model)
    points = read_workdirs([folder], loss="loop")
    np.testing.assert_array_equal([points["loop"], points["loss"], points["T"]], [[1, 2], [3.5, 3], [2, 2]])
    for name, value in {"total": 3.1, "task": 3.2, "head_1": 3.0}.items():
        points = read_workdirs([folder], loss=name)
        assert points["loss"] == value and points["loop"] == 2
    plain = sizes(dataclasses.replace(MODEL, num_heads=1))
    assert points["N"] == plain["N"] == points["N_rec"] + points["N_once"]


@pytest.mark.parametrize("kind, rest", [("sequential", 0), ("causal", 1), ("anticausal", 4), ("linear", 1)])
def test_what_head_one_needs_is_counted(kind, rest):
    found = sizes(dataclasses.replace(MODEL, head_kind=kind))
    one_head = (found["N"] - found["N_rec"]) / (3 if kind == "sequential" else 4)
    assert found["N_once"] == rest * one_head and found["N_head1"] == found["N_rec"] + found["N_once"]


def test_the_phase_follows_the_schedule():
    config = Config(optimizer=OptimizerConfig(schedule="wsd", warmup_steps=40, decay_fraction=0.2),
                    train=TrainConfig(num_steps=400))
    assert [phase(config, step) for step in (40, 41, 320, 321, 400)] == ["warmup", "stable", "stable", "decay", "decay"]
    for schedule, expected in (("cosine", "decay"), ("constant", "stable")):
        other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule=schedule))
        assert [phase(other, step) for step in (40, 41)] == ["warmup", expected]


def test_bad_runs_are_told(tmp_path):
    folder = write_run(tmp_path / "bad", [line(8, [None, 3, 3, 3])])
    early = write_run(tmp_path / "early", [{"step": 4, "split": "train", "loss": 9.0, "head_loss": [9.0]}])
    looped = write_run(tmp_path / "old", [line(8, [3.0])], dataclasses.replace(MODEL, trunk_kind="looped", loops=2))
    for folders, loss, message in [([folder], "head_1", "step 8: head_loss of head 1 is None"),
                                   ([folder], "head_5", "--loss=head_5, and the run has 4 heads"),
                                   ([folder], "head", "--loss='head' is not one of.*Did you mean"),
                                   ([early], "head_1", "early/metrics.jsonl holds no validation line yet"),
                                   ([looped], "loop", "step 8 has no losses of single loops"),
                                   ([tmp_path / "none"], "head_1", "is .*none' the folder of a run"),
                                   ([], "head_1", "No folder of a run was given")]:
        with pytest.raises(ValueError, match=message):
            read_workdirs(folders, loss=loss)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        read_workdirs([folder])


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / place / "run", [line(8, [3.0, 3, 3, 3])]) for place in "ab"]
    assert read_workdirs(folders).runs == tuple(map(str, folders))
