"""`python -m mtp_jax.data.prepare` as a user runs it: stopped in every way, on a full disk, with wrong input."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


def command(*arguments):
    return [sys.executable, "-m", "mtp_jax.data.prepare", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120)


def contents(folder):
    """Returns {relative path: sha256} of all files of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def wait_for_end(group):
    """Waits until no process of a group runs; returns False after ten seconds."""
    for _ in range(200):
        listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
        if not [line for line in listed.splitlines()[1:] if line.split()[0] == str(group) and "Z" not in line]:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """28 MB in 7 shards; long enough to stop it on the way."""
    folder = tmp_path_factory.mktemp("corpus")
    words = np.random.default_rng(0).integers(97, 123, 10**6).astype(np.uint8).tobytes()
    for i in range(280):
        (folder / f"{i}.txt").write_bytes(words[3000 * i:3000 * i + 99_000] + str(i).encode())
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """What an uninterrupted run with one process leaves; its output."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run("--source=files", f"--path={corpus}", f"--output={output}", "--processes=1")
    assert done.returncode == 0, done.stderr
    return contents(output), done


def test_the_result_and_what_is_said(whole):
    files, done = whole
    assert {name.split("-")[0] for name in files} == {"manifest.json", "train", "validation", "train.index",
                                                      "validation.index"}
    documents = [int(line.split(" records, ")[1].split()[0]) for line in done.stdout.splitlines()[:2]]
    assert len(documents) == 2 and sum(documents) == 280 and "1.000 bytes a token; " in done.stdout
    assert "27.7 MB in 7 shards" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "experiments.code_bytes" in line]
    assert "--config.data.source=prepared --config.data.path=" in line and "tokenizer" not in line


def test_stopped_in_every_way_and_gone_on_with(corpus, whole, tmp_path):
    """Ctrl-C, SIGTERM and kill -9 in turn, each after one more shard; the result is that of one run."""
    output, processes = tmp_path / "out", iter([1, 2, 2])
    arguments = ["--source=files", f"--path={corpus}", f"--output={output}"]
    shards: dict[pathlib.Path, int] = {}
    for number, status, words in ((signal.SIGINT, 130, "stopped by Ctrl-C. What is done stays"),
                                  (signal.SIGTERM, 75, "stopped by SIGTERM. What is done stays"),
                                  (signal.SIGKILL, -9, "")):
        process = subprocess.Popen(command(*arguments, f"--processes={next(processes)}"), cwd=ROOT, text=True,
                                   stderr=subprocess.PIPE, start_new_session=True)
        while len(list(output.glob("unfinished/0*.json"))) <= len(shards):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == status and words in errors and "Traceback" not in errors, errors
        assert not (output / "manifest.json").exists()
        assert wait_for_end(process.pid), "a worker is left"
        assert all(path.stat().st_mtime_ns == time for path, time in shards.items()), "a shard was written again"
        shards = {path: path.stat().st_mtime_ns for path in output.glob("unfinished/0*.json")}
    assert run(*arguments).returncode == 0
    assert contents(output) == whole[0]
    again = run(*arguments)
    assert again.returncode == 0 and "was finished before: nothing was done" in again.stdout
    assert contents(output) == whole[0]
    other = run(*arguments, "--seed=1")
    assert other.returncode == 1 and "(seed was 0 and is 1)" in other.stderr and "Traceback" not in other.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 25 MB, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True,
                                  text=True)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is refused: {done.stderr.strip()}")

    mount("size=25m")
    yield folder, lambda: mount("remount,size=100m")
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills(corpus, whole, small_disk):
    disk, enlarge = small_disk
    arguments = ["--source=files", f"--path={corpus}", f"--output={disk / 'out'}", "--processes=2"]
    for _ in range(2):  # a second try on the full disk is no worse
        full = run(*arguments)
        assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
        assert "error: the disk is full: " in full.stderr and "What is done stays: free some space and run the same " \
            "command again." in full.stderr
        assert not list((disk / "out").rglob(".*.tmp"))
    done = {path: path.stat().st_mtime_ns for path in disk.glob("out/unfinished/0*.json")}
    assert len(done) >= 1
    enlarge()
    assert run(*arguments).returncode == 0
    assert contents(disk / "out") == whole[0]


def test_wrong_input_is_told_in_one_line(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "fine"}\n{"text": "bro\n')
    arguments = ["--source=jsonl", f"--path={lines}", f"--output={tmp_path / 'out'}"]
    done = run(*arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr  # from a worker process
    assert done.stderr.splitlines()[-1].startswith("error: ") and "a.jsonl" in done.stderr and "line 2" in done.stderr
    lines.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(200)))
    assert run(*arguments).returncode == 1  # the corpus has another size now
    shutil.rmtree(tmp_path / "out")
    assert run(*arguments).returncode == 0


@pytest.mark.parametrize("flags, words", [
    (["--source=jsnl"], "jsonl"), (["--path=nowhere", "--source=files"], "does not exist"),
    (["--source=prepared", "--path=x"], "holds tokens and no documents"),
    (["--validation_fraction=2"], "must lie between 0 and 1"), (["--tokenizer=nowhere.json"], "nowhere.json"),
    (["--processes=0"], "processes"), (["--source=stdlib", "--output=gs://mine/x"], "cannot be written")])
def test_wrong_flags_are_told(tmp_path, flags, words):
    done = run(f"--output={tmp_path / 'out'}", *flags)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_quick_and_helps():
    start = time.monotonic()
    done = run("--help")
    assert time.monotonic() - start < 2 and "--validation_fraction" in done.stdout and "--output" in done.stdout


SCRIPT = """
    import os, signal, sys
    from mtp_jax.config import DataConfig
    from mtp_jax.data import Document, register_source
    from mtp_jax.data.prepare import make_plan
    from mtp_jax.data.prepare.local import WorkerDied, prepare

    def read():
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out

    @register_source("deadly")
    def deadly(config):
        return [Document("a", "a", read)]

    if __name__ == "__main__":
        try:
            prepare(make_plan(DataConfig(source="deadly")), sys.argv[1], processes=1)
        except WorkerDied as error:
            print(error)
"""


def test_a_worker_that_is_killed_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "a worker process was killed, most often because memory ran out" in done.stdout, done.stderr
    assert "fewer --processes" in done.stdout
