"""A run on a mixture: what it tells, validates, refuses and resumes."""

import json
import shutil

import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.analysis.report import report
from mtp_jax.training import prepare, signals
from tests.training.small_runs import command, run, small


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A folder of other text."""
    folder = tmp_path_factory.mktemp("prose")
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"Once upon a time there were {i} bears. " * (5 + i))
    return folder


@pytest.fixture(scope="module")
def mixed(corpus, prose):
    """Returns a function that makes a small config of two sources."""
    def make(epochs=None, **changes):
        mixture = [dict(name="scripts", weight=0.75, path=str(corpus)),
                   dict(name="prose", weight=0.25, path=str(prose), epochs=epochs)]
        return small("", data__source="stdlib", data__path="", data__mixture=mixture, **changes)
    return make


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(mixed, tmp_path_factory):
    """A finished run of eight steps on the mixture."""
    prepared = prepare.prepare(mixed(optimizer__schedule_steps=8), tmp_path_factory.mktemp("finished"))
    assert prepared.train() == signals.DONE
    return prepared


def test_validation_is_told_by_source_and_pooled_over_all_targets(finished):
    validation = [record for record in lines(finished.workdir) if record["split"] == "validation"]
    assert all(list(record["sources"]) == ["scripts", "prose"] for record in validation)
    assert all("sources" not in record for record in lines(finished.workdir) if record["split"] == "train")
    last, targets, losses = validation[-1], {}, {}
    for name, batches in finished.corpus.validation_batches().items():
        segments = np.concatenate([batch["segments"] for batch in batches])
        targets[name] = [np.sum((segments[:, k:] == segments[:, :-k]) & (segments[:, k:] > 0)) for k in (1, 2)]
        losses[name] = last["sources"][name]["head_loss"]
        assert last["sources"][name]["validation_bits_per_byte"] == pytest.approx(np.array(losses[name]) / np.log(2))
    assert targets["scripts"] != targets["prose"] and losses["scripts"] != losses["prose"]
    for field in ("head_loss", "head_accuracy"):
        for k in range(2):
            pooled = np.average([last["sources"][name][field][k] for name in targets],
                                weights=[targets[name][k] for name in targets])
            assert last[field][k] == pytest.approx(pooled, rel=1e-5)
    text = report(finished.workdir)
    assert "By source, bits/byte:" in text and "    prose  " in text


def test_what_is_held_out_of_a_source_does_not_depend_on_the_others(prose, finished):
    alone = prepare.open_corpus(small(prose).data).validation_batches()["files"]
    among = finished.corpus.validation_batches()["prose"]
    assert len(alone) == len(among)
    for one, other in zip(alone, among):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


def test_a_run_that_was_stopped_goes_on_bit_for_bit(mixed, finished, tmp_path):
    stopped = mixed(train__num_steps=4, optimizer__schedule_steps=8)
    assert prepare.prepare(stopped, tmp_path / "cut").train() == signals.DONE
    assert prepare.prepare(mixed(optimizer__schedule_steps=8), tmp_path / "cut").train() == signals.DONE
    speed = ("tokens_per_second", "tflops_per_device", "mfu")
    cut, whole = ([{key: value for key, value in record.items() if key not in speed} for record in lines(workdir)]
                  for workdir in (tmp_path / "cut", finished.workdir))
    assert cut == whole


def test_another_mixture_is_another_run(mixed, finished):
    values = configs.to_dict(mixed(optimizer__schedule_steps=8))
    values["data"]["mixture"][0]["weight"], values["data"]["mixture"][1]["weight"] = 0.5, 0.5
    with pytest.raises(ValueError, match=r"(?s)holds another run:.*data.mixture: .* 0.75.* this run .* 0.5"):
        prepare.prepare(configs.from_dict(values), finished.workdir)


def test_a_corpus_that_was_moved_is_the_same_run(mixed, finished, prose, tmp_path):
    copy = shutil.copytree(finished.workdir, tmp_path / "run")
    values = configs.to_dict(mixed(optimizer__schedule_steps=8))
    values["data"]["mixture"][1]["path"] = str(shutil.copytree(prose, tmp_path / "elsewhere"))
    assert prepare.prepare(configs.from_dict(values), copy).train() == signals.DONE
    (tmp_path / "elsewhere" / "0.txt").write_text("Another text of the same name.")
    with pytest.raises(ValueError, match=r"(?s)holds another run:.*data.mixture: .*elsewhere.*corpus_hash"):
        prepare.prepare(configs.from_dict(values), finished.workdir)


def test_a_workdir_from_before_a_field_existed_goes_on(mixed, finished, tmp_path):
    copy = shutil.copytree(finished.workdir, tmp_path / "old")
    stored = json.loads((copy / "config.json").read_text())
    for part in (stored["data"], *stored["data"]["mixture"]):
        del part["skip_invalid"], part["drop_duplicates"]
    del stored["model"]["qk_norm"], stored["logging"]
    (copy / "config.json").write_text(json.dumps(stored))
    assert prepare.prepare(mixed(optimizer__schedule_steps=8), copy).train() == signals.DONE
    with pytest.raises(ValueError, match="model.qk_norm: the workdir has False, this run True"):
        prepare.prepare(mixed(model__qk_norm=True, optimizer__schedule_steps=8), copy)
    values = configs.to_dict(mixed(optimizer__schedule_steps=8))
    values["data"]["mixture"][1]["skip_invalid"] = True
    with pytest.raises(ValueError, match="data.mixture: the workdir has .*'skip_invalid': False.*'skip_invalid': True"):
        prepare.prepare(configs.from_dict(values), copy)


def test_a_run_longer_than_the_epochs_is_refused_before_it_compiles(mixed, tmp_path, monkeypatch):
    corpus = prepare.open_corpus(mixed(epochs=2.0).data)
    rows = len(corpus.parts["prose"].rows["train"])
    steps = corpus.mixture.length // 8
    assert steps == 2 * rows // 2  # two of eight rows of a batch
    prepare.prepare(mixed(epochs=2.0, train__num_steps=steps), tmp_path)
    monkeypatch.setattr(prepare, "build_program", None)  # not reached
    with pytest.raises(ValueError, match=rf"train.num_steps={steps + 1} .*'prose': epochs=2 of its {rows} training "
                                         rf"rows last for {steps} steps of data.batch_size=8"):
        prepare.prepare(mixed(epochs=2.0, train__num_steps=steps + 1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_description_has_a_line_a_source_and_what_the_run_reads_of_it(mixed, tmp_path):
    prepared = prepare.prepare(mixed(epochs=9.0), tmp_path)
    text = prepare.describe(prepared, mixed(), "python -m x").splitlines()
    (first,) = [number for number, line in enumerate(text) if line.startswith("data        scripts: files ")]
    rows = {name: len(part.rows["train"]) for name, part in prepared.corpus.parts.items()}
    assert text[first].endswith(f"; 0.75 of this run's rows: 48, {48 / rows['scripts']:.3g} epochs")
    assert text[first + 1].startswith("            prose: files ")
    described = prepare.describe(prepared, small(""), "python -m x").splitlines()
    (changed,) = [line for line in described if line.startswith("changed")]
    assert "'prose', 'weight': 0.25, 'epochs': 9.0, 'path': " in changed and "min_bytes" not in changed
    assert text[first + 1].endswith(f"; 0.25 of this run's rows: 16, {16 / rows['prose']:.3g} epochs of at most 9")


@pytest.mark.slow
def test_a_mixture_on_the_command_line(mixed, tmp_path):
    changes = dict(data__mixture=configs.to_dict(mixed())["data"]["mixture"], data__source="stdlib", data__path="")
    done = run(command("", tmp_path, **changes))
    assert done.returncode == 0, done.stderr
    assert "data        scripts: files " in done.stderr and "By source, bits/byte:" in done.stdout
    arguments = command("", tmp_path / "bad")
    for value, message in (("({'name':", "data.mixture"), ("({'name': 'a', 'wieght': 1.0},)", 'Did you mean "weight"')):
        done = run([*arguments, "--config.data.source=stdlib", f"--config.data.mixture={value}"])
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
