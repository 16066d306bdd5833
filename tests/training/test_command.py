"""The experiment as a command: exit status, messages, what a newcomer sees."""

import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from mtp_jax.checkpoints import integrity
from mtp_jax.convert import after_training
from mtp_jax.training.prepare import prepare
from tests.training.small_runs import ROOT, command, environment, run, small


def test_a_run_prints_losses_a_sample_and_where_things_lie(corpus, tmp_path):
    relative = os.path.relpath(tmp_path / "run", ROOT)  # as a person types it
    done = run(command(corpus, relative))
    assert done.returncode == 0, done.stderr
    for part in ("bits/byte", "A sample at step 8", "head 1 alone", "tokens a forward", "plots/loss.png",
                 "metrics.jsonl"):
        assert part in done.stdout
    for part in ("to resume   python -m experiments.code_bytes --workdir=", "memory", "train 8/8"):
        assert part in done.stderr
    assert (tmp_path / "run" / "plots" / "loss.png").stat().st_size > 10_000
    assert "Traceback" not in done.stderr
    assert f"model, tokenizer = (c.from_pretrained('{relative}/hf')" in done.stdout
    card = tmp_path / "run" / "hf" / "README.md"
    assert "| steps | 8 of 8 |" in card.read_text()


@pytest.mark.slow
def test_the_export_of_a_longer_run_replaces_the_earlier_one(corpus, tmp_path):
    """As at the end of a run that goes on; what cannot be exported is told, and the run was a success all the same."""
    assert prepare(small(corpus, logging__tensorboard=False), tmp_path).train() == 0
    place = epath.Path(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "old.txt").write_text("of before")
    assert "from_pretrained" in after_training.export(place) and not (tmp_path / "hf" / "old.txt").exists()
    assert "from_pretrained" in after_training.export(place) and (tmp_path / "hf" / "model.safetensors").exists()
    (tmp_path / "config.json").write_text("{")
    told = after_training.export(place)
    assert told.startswith("Not exported for transformers: ") and "damaged" in told
    assert (tmp_path / "hf" / "model.safetensors").exists()
    assert "--dst=FOLDER" in after_training.export(epath.Path("gs://bucket/run"))


def test_sigterm_saves_and_exits_with_75(corpus, tmp_path):
    process = subprocess.Popen(command(corpus, tmp_path, train__num_steps=100_000, train__checkpoint_every=100_000,
                                       train__validate_every=100_000),
                               cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert "Stopped and saved at step" in stderr and "Traceback" not in stderr
    assert len(os.listdir(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("argument, message", [
    ("--config.model.num_head=3", "error: --config has no field 'num_head'. Did you mean \"num_heads\""),
    ("--config.modell.num_heads=3", 'Did you mean "model"'),
    ("--workdr=x", "Did you mean: workdir"),
    ("--config.model.num_heads=0", "error: model.num_heads=0"),
    ("--config.model.num_heads=four", "config.model.num_heads=four"),
    ("surplus", "error: unexpected arguments surplus"),
])
def test_mistakes_are_told_without_a_traceback(argument, message, tmp_path):
    done = run([sys.executable, "-m", "experiments.code_bytes", f"--workdir={tmp_path}", argument])
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["experiments.code_bytes", "experiments.code_bytes_8"])
def test_help_answers_quickly(module):
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = run([sys.executable, "-m", module, "--help"])
        fastest = min(fastest, time.perf_counter() - start)
    assert "--workdir" in done.stdout and "--config.model.num_heads=" in done.stdout
    assert fastest < 2.0


SECOND_SAVE_FINDS_THE_DISK_FULL = """
import errno, runpy, sys
from mtp_jax.checkpoints import integrity

write, saves = integrity.write_manifest, []

def write_manifest(directory):
    saves.append(directory)
    if len(saves) == 2:
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))
    write(directory)

integrity.write_manifest = write_manifest
sys.argv[0] = "code_bytes.py"
runpy.run_module("experiments.code_bytes", run_name="__main__", alter_sys=True)
"""


def test_a_disk_that_is_full_at_the_second_save_ends_the_run_with_a_word(corpus, tmp_path):
    python, _, _, *arguments = command(corpus, tmp_path)
    done = run([python, "-c", SECOND_SAVE_FINDS_THE_DISK_FULL, *arguments])
    assert done.returncode == 1, done.stderr
    assert "error: The disk is full: checkpoint 8" in done.stderr and "last good checkpoint is 4" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")  # not the end of a traceback
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "checkpoints") == ["4"]
    assert not integrity.find_faults(tmp_path / "checkpoints" / "4")


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_word_and_keeps_the_last_good_checkpoint(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs privileges")
    try:
        # A checkpoint takes about a megabyte: the third one does not fit beside the two that are kept.
        done = run(command(corpus, disk / "run", train__num_steps=40, model__d_model=48, checkpoint__keep_last=10))
        assert done.returncode == 1, done.stderr
        assert "error: The disk is full: checkpoint" in done.stderr and "last good checkpoint is" in done.stderr
        kept = [name for name in os.listdir(disk / "run" / "checkpoints") if name.isdecimal()]
        assert kept
    finally:
        subprocess.run(["umount", disk], check=True)
