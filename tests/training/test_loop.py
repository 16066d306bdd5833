"""A run in this process: what it writes, resumes, refuses and stops at."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints import load_extra
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.training import prepare, signals
from mtp_jax.training.loop import Meter, NonFiniteLoss
from mtp_jax.training.program import Program
from tests.training.small_runs import small


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_speed(records):
    return [{k: v for k, v in record.items() if k not in ("tokens_per_second", "tflops_per_device", "mfu")}
            for record in records]


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """A finished run of eight steps."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    run = prepare.prepare(small(corpus), workdir)
    assert run.train() == signals.DONE
    return workdir


def test_a_run_leaves_what_the_design_says(unbroken):
    records = lines(unbroken)
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 9))
    assert [r["step"] for r in records if r["split"] == "validation"] == [4, 8]
    train, validation = records[0], next(r for r in records if r["split"] == "validation")
    assert set(train) == {"step", "split", "loss", "head_loss", "head_accuracy", "tokens_per_second", "mfu",
                          "learning_rate", "grad_norm", "head_weights"}  # and TFLOP/s where the step was timed
    assert len(train["head_loss"]) == 2 and train["mfu"] is None
    assert train["loss"] == pytest.approx(sum(train["head_loss"]), rel=1e-5)
    assert validation["head_agreement"][0] == 1.0 and 1 <= validation["expected_accepted_length"] <= 2
    assert validation["validation_bits_per_byte"][0] == pytest.approx(validation["head_loss"][0] / np.log(2))
    stored = json.loads((unbroken / "config.json").read_text())
    assert stored["model"]["vocab_size"] == 259 and len(stored["corpus_hash"]) == 64 and stored["version"]
    assert stored["tokenizer_hash"] == ByteTokenizer.hash == load_extra(unbroken)["tokenizer_hash"]
    assert {p.name for p in (unbroken / "checkpoints").iterdir()} == {"4", "8"}
    assert list(unbroken.glob("events.out.tfevents.*"))


def test_a_finished_run_has_nothing_to_do(unbroken, corpus):
    before = (unbroken / "metrics.jsonl").read_text()
    assert prepare.prepare(small(corpus), unbroken).train() == signals.DONE
    assert (unbroken / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_next_start_goes_on_bit_for_bit(number, status, unbroken, corpus, tmp_path, monkeypatch):
    run = prepare.prepare(small(corpus), tmp_path)
    put, calls = run.program.put, []

    def put_and_signal(batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return put(batch)

    monkeypatch.setattr(type(run.program), "put", lambda self, batch: put_and_signal(batch))
    assert run.train() == status
    monkeypatch.undo()
    assert [r["step"] for r in lines(tmp_path)] == [1, 2, 3]
    assert prepare.prepare(small(corpus), tmp_path).train() == signals.DONE
    assert without_speed(lines(tmp_path)) == without_speed(lines(unbroken))


def test_lines_after_the_restored_step_are_cut_back(unbroken, corpus, tmp_path):
    run = prepare.prepare(small(corpus, train__num_steps=4, optimizer__schedule_steps=8), tmp_path)
    assert run.train() == signals.DONE
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "split": "train"}\n{"step": 6, "spl')
    assert prepare.prepare(small(corpus, optimizer__schedule_steps=8), tmp_path).train() == signals.DONE
    assert without_speed(lines(tmp_path)) == without_speed(lines(unbroken))


def test_another_identity_is_refused_and_names_the_fields(unbroken, corpus):
    with pytest.raises(ValueError, match=r"(?s)holds another run:.*model.d_model: the workdir has 16, this run 32.*"
                                         r"optimizer.learning_rate"):
        prepare.prepare(small(corpus, model__d_model=32, optimizer__learning_rate=0.5), unbroken)


def test_a_changed_corpus_is_refused(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    assert prepare.prepare(small(copy, train__num_steps=4, optimizer__schedule_steps=8), tmp_path / "run").train() == 0
    (copy / "file_0.py").write_text("changed = True\n" * 9)
    with pytest.raises(ValueError, match="corpus_hash"):
        prepare.prepare(small(copy, optimizer__schedule_steps=8), tmp_path / "run")


def test_cadence_may_change_and_a_schedule_on_num_steps_warns(unbroken, corpus, caplog):
    with caplog.at_level("INFO", logger="absl"):
        prepare.prepare(small(corpus, train__num_steps=12, train__validate_every=3), unbroken)
    assert "the schedule jumps" in caplog.text and "train.validate_every from 4 to 3" in caplog.text


@pytest.mark.parametrize("changes, message", [
    (dict(model__vocab_size=100), "model.vocab_size=100 is smaller than the 259 ids"),
    (dict(model__num_heads=0), "model.num_heads=0"),
    (dict(data__path="/nowhere"), "data.path='/nowhere' does not exist"),
    (dict(data__seq_len=2), "data.seq_len=2 leaves head 2 no target"),
    (dict(parallel__mesh="data:16"), "needs 16 devices"),
    (dict(data__batch_size=9), "data.batch_size=9"),
    (dict(init_from__path="/nowhere"), "no checkpoint in /nowhere"),
])
def test_bad_input_is_refused_before_anything_is_written(changes, message, corpus, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(small(corpus, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_names_head_and_step_and_keeps_the_checkpoint(corpus, tmp_path, monkeypatch):
    run = prepare.prepare(small(corpus), tmp_path)
    step_function, calls = run.program.train_step, []

    def poisoned(state, batch):
        calls.append(1)
        if len(calls) == 6:  # head 2's own parameters only, so that head 1 stays finite in this step
            with jax.transfer_guard("allow"):
                heads = jax.tree.map(lambda x: x.at[1].set(np.nan), state.params["heads"])
            state = type(state)(state.step, {**state.params, "heads": heads}, state.opt_state)
        return step_function(state, batch)

    object.__setattr__(run.program, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"Step 6: the loss of head 2 is nan"):
        run.train()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"4"}
    assert max(r["step"] for r in lines(tmp_path)) == 5
    assert prepare.prepare(small(corpus), tmp_path).train() == signals.DONE


def test_a_dry_run_writes_nothing(corpus, tmp_path, capsys):
    assert prepare.prepare(small(corpus), tmp_path / "run").dry_run() == signals.DONE
    assert not (tmp_path / "run").exists()
    assert "step 2: loss" in capsys.readouterr().out


def test_profile_of_chosen_steps(corpus, tmp_path):
    config = small(corpus, logging__profile_start=2, logging__profile_steps=2, train__num_steps=4,
                   optimizer__schedule_steps=8)
    assert prepare.prepare(config, tmp_path).train() == signals.DONE
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_init_from_takes_trunk_and_heads(unbroken, corpus, tmp_path):
    config = small(corpus, model__num_heads=3, model__num_layers=4, init_from__path=str(unbroken),
                   init_from__heads=(2, 1, "fresh"), train__num_steps=4, optimizer__schedule_steps=8)
    run = prepare.prepare(config, tmp_path)
    from mtp_jax.checkpoints import Checkpointer, load_params

    state, step, next_row = run.initial_state(Checkpointer(tmp_path / "checkpoints", config.checkpoint))
    source = load_params(unbroken).params
    assert (step, next_row) == (0, 0)
    np.testing.assert_array_equal(state.params["trunk"]["mlp"]["up"], source["trunk"]["mlp"]["up"])
    np.testing.assert_array_equal(state.params["heads"]["mlp"]["up"][:2], source["heads"]["mlp"]["up"][::-1])
    assert run.train() == signals.DONE


def test_init_from_refuses_heads_of_another_kind(unbroken, corpus, tmp_path):
    config = small(corpus, model__head_kind="causal", init_from__path=str(unbroken))
    with pytest.raises(ValueError, match="holds 'parallel' heads and model.head_kind='causal'"):
        prepare.prepare(config, tmp_path)
    fresh = small(corpus, model__head_kind="causal", init_from__path=str(unbroken),
                  init_from__heads=("fresh", "fresh"))
    assert prepare.prepare(fresh, tmp_path).dry_run() == signals.DONE


@pytest.mark.parametrize("heads, message", [
    ((1, 2, "fresh"), "has 3 entries for model.num_heads=2"), ((1, 3), "numbered from 1 to 2"),
    ((1, "frsh"), 'Did you mean "fresh"')])
def test_init_from_heads_are_checked_before_anything_is_computed(heads, message, unbroken, corpus, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(small(corpus, init_from__path=str(unbroken), init_from__heads=heads), tmp_path)


def test_without_config_json_the_checkpoint_tells_whose_run_it_is(unbroken, corpus, tmp_path, caplog):
    copy = shutil.copytree(unbroken, tmp_path / "run")
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="optimizer.learning_rate: the workdir has 0.01, this run 0.5"):
        prepare.prepare(small(corpus, optimizer__learning_rate=0.5), copy)
    assert "config.json is missing" in caplog.text
    assert prepare.prepare(small(corpus), copy).train() == signals.DONE


def test_a_file_is_no_workdir(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file: name another"):
        prepare.prepare(small(corpus), tmp_path / "file" / "run")


def test_a_profile_that_cannot_come_is_told(unbroken, corpus, tmp_path, caplog):
    copy = shutil.copytree(unbroken, tmp_path / "run")
    config = small(corpus, logging__profile_start=3, train__num_steps=9, optimizer__schedule_steps=8)
    stored = json.loads((copy / "config.json").read_text())
    stored["optimizer"]["schedule_steps"] = 8
    (copy / "config.json").write_text(json.dumps(stored))
    assert prepare.prepare(config, copy).train() == signals.DONE
    assert "profile_start=3 is not among the steps 9 to 9" in caplog.text


@pytest.mark.slow
def test_bfloat16_parameters_resume_and_compile_once(corpus, tmp_path):
    changes = dict(model__param_dtype="bfloat16", model__dtype="bfloat16", optimizer__schedule_steps=8)
    run = prepare.prepare(small(corpus, train__num_steps=4, **changes), tmp_path)
    assert run.train() == signals.DONE and run.program.train_step._cache_size() == 1
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.program.state.opt_state) if leaf.ndim} == {"float32"}
    assert prepare.prepare(small(corpus, **changes), tmp_path).train() == signals.DONE
    assert max(record["step"] for record in lines(tmp_path)) == 8


def test_another_mesh_goes_on_with_the_same_tokens_and_losses(corpus, tmp_path, monkeypatch):
    """20 fp32 steps on 2 x 2 x 2 devices after 4 on 8, against 24 on 8."""
    seen = {}
    put = Program.put

    def record(self, batch):
        seen.setdefault(self.config.parallel.mesh, []).append(batch["tokens"].copy())
        return put(self, batch)

    monkeypatch.setattr(Program, "put", record)
    steps = dict(train__validate_every=100, optimizer__schedule_steps=24)
    whole = small(corpus, train__num_steps=24, **steps)
    assert prepare.prepare(whole, tmp_path / "whole").train() == signals.DONE
    assert prepare.prepare(small(corpus, train__num_steps=4, **steps), tmp_path / "moved").train() == signals.DONE
    mesh = "data:2,fsdp:2,tensor:2"
    moved = small(corpus, train__num_steps=24, parallel__mesh=mesh, **steps)
    assert prepare.prepare(moved, tmp_path / "moved").train() == signals.DONE
    tokens = seen[whole.parallel.mesh]
    np.testing.assert_array_equal(np.stack(tokens[4:24]), np.stack(seen[mesh][:20]))
    losses = [[record["loss"] for record in lines(tmp_path / name) if record["split"] == "train"]
              for name in ("whole", "moved")]
    assert len(losses[0]) == 24
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_description_has_what_a_reader_needs(corpus, tmp_path):
    run = prepare.prepare(small(corpus), tmp_path)
    text = prepare.describe(run, small(corpus, model__d_model=32), "python -m x")
    for part in ("model.d_model=16", "parameters", "2 parallel heads", "tokens", "MiB", "python -m x", "data 8"):
        assert part in text, part


def test_compiled_memory_is_near_the_estimate(corpus, tmp_path):
    run = prepare.prepare(small(corpus, model__d_model=64, model__num_layers=6, data__batch_size=64, data__seq_len=64,
                                parallel__mesh="data:8"), tmp_path)
    memory = run.program.train_step.lower(run.program.state, run.program.batch).compile().memory_analysis()
    actual = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert 0.3 < run.program.estimated_bytes() / actual < 3


def test_the_meter_leaves_pauses_out(monkeypatch):
    times = iter([0.0, 1.0, 2.0, 50.0, 51.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    meter = Meter()
    for _ in range(3):
        meter.tick(10)
    meter.pause()
    meter.tick(10)
    meter.tick(10)
    assert meter.take() == pytest.approx(10.0)
    assert meter.take() is None
