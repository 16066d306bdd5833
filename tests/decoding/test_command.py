"""The command: what goes to stdout and what to stderr, prompts from files, stop tokens, streams, and bad input."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from mtp_jax.config import GenerationConfig
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import auto, command, generate, prompts, terminal
from mtp_jax.decoding.load import load_model
from mtp_jax.decoding.tree import Tree
from tests.decoding.models import text, trained_model
from tests.decoding.test_load import train_tokenizer
from tests.decoding.workdirs import write_workdir
from tests.training.small_runs import ROOT, environment

PROMPT, WINDOW = "def return ", 64


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a small byte model that was trained for seconds."""
    spec, params, _ = trained_model(dtype="float32")
    return write_workdir(tmp_path_factory.mktemp("trained") / "run", spec.config, {1: params}, seq_len=WINDOW)


@pytest.fixture(scope="module", autouse=True)
def one_model(workdir):
    """Lets all runs share models and so their compiled programs."""
    known = {}

    def load(folder, **options):
        key = str(folder), *((name, value) for name, value in options.items() if value is not None)
        if key not in known:
            known[key] = load_model(folder, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_model", load)
        yield known


@pytest.fixture
def run(workdir, capsys):
    """Returns a function that runs the command in this process and gives back stdout and stderr."""
    def call(**settings):
        capsys.readouterr()
        settings = {"workdir": str(workdir), "prompt": (PROMPT,), "max_new_tokens": 24, **settings}
        assert command.run(GenerationConfig(**settings)) == 0
        return capsys.readouterr()

    return call


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def reference(workdir, starts, **options):
    """Returns what the same model makes of the prompts; tests/decoding/test_exact.py says that this is right."""
    return generate(command.load_model(workdir), starts, max_new_tokens=24, **options)


def test_the_text_alone_goes_to_stdout(run, workdir, tmp_path):
    out, err = run(stats=str(tmp_path / "stats.json"))
    result = reference(workdir, [PROMPT])
    assert out == result.text[0] + "\n" and len(result.tokens[0]) == 24
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert list(stats) == ["tokens", "forwards", "tokens_per_forward", "seconds", "tokens_per_second", "acceptance"]
    assert stats["tokens"] == 24 and stats["forwards"] == int(result.forwards.sum()) < 24
    assert stats["tokens_per_forward"] == 24 / stats["forwards"] and stats["acceptance"] == result.acceptance
    assert stats["tokens_per_second"] == pytest.approx(24 / stats["seconds"]) and len(stats["acceptance"]) == 3
    assert f"24 tokens in {stats['forwards']} forwards" in err and "ended by length 1" in err


def test_heads_change_the_forwards_and_not_the_text(run, tmp_path):
    out, _ = run(heads="1", stats=str(tmp_path / "stats.json"))
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert out == run().out and stats["acceptance"] == [] and stats["forwards"] == 24


def test_several_prompts_are_one_batch_and_are_kept_apart(run, workdir, monkeypatch):
    starts = [PROMPT, "x", "print class "]
    out, err = run(prompt=tuple(starts))
    texts = reference(workdir, starts).text
    assert out == "\n\f\n".join(texts) + "\n"
    assert [int(number) for number in re.findall(r"^--- (\d) of 3, after '", err, re.MULTILINE)] == [1, 2, 3]
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    run(prompt=tuple(starts))
    assert shown.getvalue() == "\n\n".join(map(terminal.harmless, texts)) + "\n"


def test_prompts_from_files(run, workdir, tmp_path):
    lines = [{"prompt": PROMPT, "task_id": 1}, {"text": "x"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    (tmp_path / "p.txt").write_bytes(b"print\xff class\n")
    want = "\n\f\n".join(reference(workdir, ["a", PROMPT, "x"]).text) + "\n"
    assert run(prompt=("a",), prompt_file=str(tmp_path / "p.jsonl")).out == want
    assert run(prompt=("a",), prompt_file=str(tmp_path / "p.jsonl.gz")).out == want
    assert run(prompt=("x", "y"), prompt_file=str(tmp_path / "p.txt")).out == "\n\f\n".join(
        reference(workdir, [[256, 120], [256, 121], [256, *b"print\xff class\n"]]).text) + "\n"


def test_an_argument_that_is_no_utf_8_is_bytes():
    config = GenerationConfig(workdir="x", prompt=(os.fsdecode(b"a\xff"), "\u00e9"))
    assert prompts.read_prompts(config) == [b"a\xff", "\u00e9"]


def test_a_text_streams_to_a_terminal_as_it_is_accepted(run, monkeypatch):
    want = run().out
    writes = []

    class Watched(Terminal):
        def write(self, text):
            writes.append(text)
            return super().write(text)

    shown, told = Watched(), Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", told)
    run()
    assert shown.getvalue() == terminal.harmless(want) and len(writes) > 5
    assert told.getvalue().startswith(f"\x1b[2m{PROMPT}\x1b[0m")
    writes.clear()
    run(stream=False)
    assert shown.getvalue() == 2 * terminal.harmless(want)


def test_a_stream_into_a_file_is_the_same_text(run):
    assert run(stream=True).out == run().out


def test_drafts_are_coloured_by_head(run, workdir):
    out, err = run(show_drafts=True)
    result = reference(workdir, [PROMPT])
    assert set(np.unique(result.drafted_by[0])) > {1}
    assert re.sub("\x1b\\[[0-9;]*m", "", out) == terminal.harmless(run().out)
    assert out == "".join(terminal.colour(terminal.harmless(text), head) for text, head in terminal.pieces(
        ByteTokenizer(), [256], result.tokens[0], result.drafted_by[0])) + "\n"
    assert terminal.legend(4) in err and "\x1b" in err


def test_stop_tokens_by_text_and_by_id(run):
    whole = run().out
    letter = whole[5]
    assert run(stop=(letter,)).out == whole[:whole.index(letter)] + "\n"
    assert run(stop=(str(ord(letter)),)).out == whole[:whole.index(letter)] + "\n"
    assert "ended by stop 1" in run(stop=(letter, "7")).err


def test_draws_follow_the_seed_and_the_sampling_settings(run):
    options = dict(temperature=1.5, top_k=50, top_p=0.99, min_p=0.001)
    texts = [run(**options, seed=seed).out for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert run(temperature=1.0, top_k=1).out == run().out
    assert run(temperature=1.0, typical=True, typical_epsilon=0.5).out


def test_a_terminal_that_is_not_utf_8_gets_question_marks(run, monkeypatch):
    data = io.BytesIO()
    shown = io.TextIOWrapper(data, encoding="ascii")
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(command.terminal, "pieces", lambda *_: [("é\x07", 1)])
    run(stream=False)
    assert data.getvalue() == b"??\n"


def test_auto_decodes_with_what_was_chosen_and_says_it(run, workdir, monkeypatch, tmp_path):
    asked = []

    def choose(model, starts, **options):
        asked.append((model.heads, starts, options))
        return auto.Choice(Tree.chain(1), 1, 1.0, 0.5, 2.0, (auto.Candidate(Tree.chain(1), 1.0, 0.5),), "a text")

    monkeypatch.setattr(auto, "choose_for", choose)
    out, err = run(heads="auto", stats=str(tmp_path / "stats.json"))
    assert asked == [(4, [[256, *PROMPT.encode()]], dict(max_new_tokens=24, workdir=str(workdir)))]
    assert out == run().out and json.loads((tmp_path / "stats.json").read_text())["forwards"] == 24
    assert "as calibrated on a text" in err and "< chosen" in err


@pytest.mark.slow
def test_calibrate_and_then_a_tree(run, workdir, tmp_path):
    (tmp_path / "text.txt").write_text(text(2, 400))
    out, err = run(prompt=(), calibrate=str(tmp_path / "text.txt"))
    assert out == "" and f"Wrote {workdir / 'calibration.json'}" in err and "right at once" in err
    assert run(tree=6, stats=str(tmp_path / "stats.json")).out == run().out
    assert json.loads((tmp_path / "stats.json").read_text())["tokens_per_forward"] > 1
    (workdir / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match="calibration.json is damaged.*--calibrate=TEXT measures it anew"):
        run(tree=6)
    (workdir / "calibration.json").unlink()


@pytest.mark.parametrize("settings, message", [
    (dict(workdir=""), "--workdir is missing"),
    (dict(prompt=()), "nothing to continue: give --prompt=TEXT"),
    (dict(prompt=("",)), "--prompt is empty"),
    (dict(prompt=(PROMPT * 20,)), "(?i)window"),
    (dict(heads="5"), "heads=5 must lie in .* for the model has 4 heads"),
    (dict(heads="0"), "heads=0 must lie in"),
    (dict(heads="al"), "--heads=al must be a number, or auto"),
    (dict(temperature=-1.0), "temperature=-1"),
    (dict(top_p=0.0), "top_p=0"),
    (dict(max_new_tokens=0), "--max_new_tokens=0"),
    (dict(seed=-1), "--seed=-1"),
    (dict(tree=-1), "--tree=-1"),
    (dict(tree=1), "--tree=1 has room for no draft"),
    (dict(tree=8, heads="1"), "--heads=1 makes none"),
    (dict(tree=8, heads="9", calibrate=__file__), "heads=9 must lie in 1..4"),
    (dict(tree=8, heads="0", calibrate=__file__), "heads=0 must lie in 1..4"),
    (dict(stop=("9" * 5000,)), "is no token: ids are below 259"),
    (dict(stop=("\u0663",)), "is 2 tokens"),
    (dict(stats="."), "--stats=. is a folder"),
    (dict(tree=8, heads="auto"), "leave out one"),
    (dict(tree=8), "There is no .*calibration.json: python -m mtp_jax.generate --workdir=.* --calibrate=TEXT"),
    (dict(calibrate="nowhere.txt"), "--calibrate=nowhere.txt cannot be read"),
    (dict(prompt_file="nowhere.txt"), "--prompt_file=nowhere.txt does not exist"),
    (dict(stop=("ab",)), "--stop='ab' is 2 tokens"),
    (dict(stop=("999",)), "--stop=999 is no token: ids are below 259"),
    (dict(stats="nowhere/stats.json"), "--stats=nowhere/stats.json is in a folder that does not exist"),
    (dict(prompt=("a", "b"), stream=True), "--stream shows one text"),
])
def test_bad_input_is_told_with_the_remedy(workdir, settings, message):
    settings = {"workdir": str(workdir), "prompt": (PROMPT,), "max_new_tokens": 24, **settings}
    with pytest.raises(ValueError, match=message) as caught:
        command.run(GenerationConfig(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content, message", [
    ("", "holds an empty prompt"), ('{"prompt": ""}', "holds an empty prompt"), ("{", "line 1 is no JSON"),
    ("[1]", "line 1 is no object"), ('{"prompt": 3}', '"prompt" is 3, which is no text'),
    ('{"promt": "x"}', r"neither \"prompt\" nor \"text\". Did you mean"),
])
def test_a_prompt_file_that_cannot_be_used(workdir, tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        command.run(GenerationConfig(workdir=str(workdir), prompt_file=str(tmp_path / "p.jsonl")))


def test_another_tokenizer_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match="was trained with another"):
        command.run(GenerationConfig(workdir=str(workdir), prompt=("x",), tokenizer=train_tokenizer(tmp_path)))


def test_ctrl_c_ends_it_without_a_traceback(workdir, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "generate", interrupt)
    assert command.run(GenerationConfig(workdir=str(workdir), prompt=("x",))) == 130
    assert "Stopped" in capsys.readouterr().err


def start(*arguments):
    return subprocess.run([sys.executable, "-m", "mtp_jax.generate", *arguments], cwd=ROOT, env=environment(),
                          capture_output=True, text=True, timeout=240)


def test_as_a_process(workdir, run):
    done = start(f"--workdir={workdir}", f"--prompt={PROMPT}", "--max_new_tokens=24", "--heads=1")
    assert (done.returncode, done.stdout) == (0, run().out), done.stderr
    assert "24 tokens in" in done.stderr


def test_an_error_is_one_line_and_status_1(tmp_path):
    done = start(f"--workdir={tmp_path}", "--prompt=x")
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert re.match("error: The workdir .* has no checkpoint: name", done.stderr)


def test_help_is_quick_and_says_what_is_not_lossless():
    clock = time.perf_counter()
    done = start("--help")
    page = re.sub(r"\s+", " ", done.stdout)
    assert all(f"--{name}" in page or f"--[no]{name}" in page for name in GenerationConfig.__dataclass_fields__)
    assert "NOT lossless" in page and time.perf_counter() - clock < 10  # under 2 s on an idle machine
    done = subprocess.run([sys.executable, "-c", "import sys, mtp_jax.generate\nprint(*sys.modules)"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert not {"jax", "numpy", "flax", "orbax"} & set(done.stdout.split()), done.stderr
