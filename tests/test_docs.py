"""What the docs say is so: the files of extending.md train, metrics.md names every number, links and commands exist."""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import math
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.checkpoints import load_params
from mtp_jax.data import ByteTokenizer, open_corpus, sources
from mtp_jax.model import Execution, ModelSpec
from mtp_jax.model.heads import interface
from mtp_jax.objective import head_weights, schedules
from mtp_jax.training.flops import layer_flops
from mtp_jax.training.logs import Record, scalars, to_json
from mtp_jax.training.prepare import prepare, resolve_vocabulary
from mtp_jax.training.program import build_program
from mtp_jax.training.state import flatten_params
from tests import small_model
from tests.training.small_runs import ROOT, command, environment, small, write_corpus

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXTENDING = (ROOT / "docs/extending.md").read_text()
METRICS = (ROOT / "docs/metrics.md").read_text()
BLOCKS = [text for language, text in FENCE.findall(EXTENDING) if language == "python"]
# A complete file says in its docstring how it is run.
FILES = {found[1]: text for text in BLOCKS
         if (found := re.search(r"python -m experiments\.(\w+)", ast.get_docstring(ast.parse(text)) or ""))}


# The three files of extending.md.

@pytest.fixture
def own_registries(monkeypatch):
    """What the test registers is forgotten after it."""
    monkeypatch.setattr(interface, "HEAD_KINDS", dict(interface.HEAD_KINDS))
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    monkeypatch.setattr(schedules, "_HEADS_MAY_REST", dict(schedules._HEADS_MAY_REST))
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The settings of a source of a few files."""
    return dict(source="files", path=str(write_corpus(tmp_path_factory.mktemp("corpus"))))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder as a user has it: the experiments, and the files of the page among them."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "experiments", root / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (root / "experiments" / f"{name}.py").write_text(text)
    return root


def get_config(checkout, name, **sections):
    """Registers what a file registers and returns its config, made small, with these sections' fields changed."""
    module = runpy.run_path(str(checkout / "experiments" / f"{name}.py"))
    values = configs.to_dict(configs.from_config_dict(module["get_config"]()))
    tiny = configs.to_dict(small(""))  # as other tests have it, so that compiled programs are shared
    for name in ("model", "data", "optimizer", "train", "logging"):
        kept = {field: values[name][field] for field in ("head_kind", "source") if field in values[name]}
        values[name] = {**tiny[name], **kept}
    for name, fields in sections.items():
        values[name].update(fields)
    return configs.from_dict(values)


def test_the_page_holds_a_file_for_each_piece():
    assert list(FILES) == ["mlp_heads", "geometric_weights", "sqlite"]
    assert all(f"`experiments/{name}.py`" in EXTENDING for name in FILES)


@pytest.mark.slow
def test_the_head_kind_trains_as_a_command_and_its_sample_comes_from_it(checkout, corpus, tmp_path):
    arguments = command(corpus["path"], tmp_path)[4:]  # those that make a run small
    done = subprocess.run([sys.executable, "-m", "experiments.mlp_heads", f"--workdir={tmp_path / 'run'}", *arguments],
                          cwd=checkout, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 mlp heads, shared unembedding" in done.stderr and "A sample at step 8" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["head_kind"] == "mlp" != configs.ModelConfig().head_kind
    shapes = {path: leaf.shape for path, leaf in flatten_params(load_params(tmp_path / "run").params).items()}
    D, F = 16, configs.from_dict({"model": config["model"]}).model.mlp_dim
    assert {path: shape for path, shape in shapes.items() if path.startswith("heads/")} == {
        "heads/norm/scale": (2, D), "heads/mlp/gate": (2, D, F), "heads/mlp/up": (2, D, F), "heads/mlp/down": (2, F, D)}
    assert shapes["trunk/mlp/gate"] == (3, D, F)  # num_layers=3, and the heads take none of them
    assert all(f"`{path}`" in EXTENDING for path in shapes if path.startswith("heads/"))


def test_the_head_kind_computes_the_same_in_every_way(checkout, own_registries):
    get_config(checkout, "mlp_heads")
    config, scale_N = small_model.make_config(head_kind="mlp"), np.array([0.5, 0.0, 1.0], np.float32)
    params, batch = small_model.make_params(config), small_model.make_batch()
    wanted, skipped = (small_model.gradient_function(config, execution)(params, batch, scale_N) for execution in (
        small_model.ROLLED, Execution(remat="full", heads_abreast=3, skip_idle_heads=True)))
    assert [bool(np.any(part)) for part in wanted[1]["heads"]["mlp"]["gate"]] == [True, False, True]
    np.testing.assert_allclose(wanted[0][0], skipped[0][0], rtol=1e-5)
    small_model.assert_trees_close(skipped[1], wanted[1], 1e-5)
    for skip in (False, True):
        branches = small_model.primitives(lambda params, skip=skip: ModelSpec.create(config).bind(params)(
            *batch.values(), weights_N=scale_N, execution=Execution(skip_idle_heads=skip)), params).count("cond")
        assert branches == 3 * skip


def test_the_head_kind_obeys_detach_trunk(checkout, own_registries):
    get_config(checkout, "mlp_heads")
    config, scale_N = small_model.make_config(head_kind="mlp"), np.array([0.0, 1.0, 1.0], np.float32)
    params, batch = small_model.make_params(config), small_model.make_batch()
    for detach in (False, True):
        _, grads = small_model.gradient_function(config, detach_trunk=detach)(params, batch, scale_N)
        assert np.any(grads["heads"]["mlp"]["gate"])
        assert bool(np.any(grads["trunk"]["mlp"]["gate"])) is not detach


def test_the_head_kind_is_counted_and_sharded(checkout, own_registries):
    config = get_config(checkout, "mlp_heads", parallel=dict(mesh="data:2,fsdp:2,tensor:2"))
    config = resolve_vocabulary(config, ByteTokenizer())
    program, D, F = build_program(config), 16, config.model.mlp_dim
    assert program.flops_per_token == 3 * (3 * layer_flops(config.model, seq_len=16) + 2 * (6 * D * F + 2 * D * 259))
    gate = program.state.params["heads"]["mlp"]["gate"]
    assert gate.sharding.shard_shape(gate.shape) == (2, D // 2, F // 2)


def test_the_check_of_the_page_passes_and_notices_a_head_that_looks_ahead(checkout):
    (check,) = [text for text in BLOCKS if "moved_L" in text]
    ahead = check.replace("spec.bind(params)(", "(lambda *x: jnp.roll(spec.bind(params)(*x), -1, axis=2))(")
    assert ahead != check
    done = subprocess.run([sys.executable, "-c", f"{check}\nprint('passed')\n{ahead}"], cwd=checkout,
                          env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240)
    assert done.stdout == "passed\n" and "AssertionError" in done.stderr, done.stderr


def test_the_schedule_weighs_the_losses_as_the_page_says(checkout, corpus, tmp_path, own_registries):
    config = get_config(checkout, "geometric_weights", data=corpus, objective=dict(schedule_steps=16))
    run = prepare(config, tmp_path)
    assert not run.program.execution.skip_idle_heads
    assert run.train() == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["split"] == "train"]
    assert len(records) == 8
    for record in records:
        ramp = min(record["step"] / 4, 1)  # a quarter of 16 steps
        np.testing.assert_allclose(record["loss"], np.dot([1, 0.5 * ramp], record["head_loss"]), rtol=1e-5)
    four = head_weights(config.objective, 4, 16)
    np.testing.assert_allclose(four(1), [1, 0.25, 0.125, 0.0625], rtol=1e-6)
    np.testing.assert_allclose(four(15), [1, 0.5, 0.25, 0.125], rtol=1e-6)


def write_database(path, rows):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE IF EXISTS documents")
        database.execute("CREATE TABLE documents (id, text)")
        database.executemany("INSERT INTO documents VALUES (?, ?)", rows)


def test_the_source_is_what_is_trained_on(checkout, tmp_path, own_registries):
    texts = {f"poet{i % 4}/poem{i}": f"Line {i} of a poem,\u2028 and then another one.\n" * 20 for i in range(12)}
    path = tmp_path / "corpus.db"
    write_database(path, texts.items())
    config = get_config(checkout, "sqlite", data=dict(path=str(path)))
    run = prepare(config, tmp_path / "run")
    assert run.train() == 0
    part = run.corpus.parts["sqlite"]
    assert part.num_groups == {"train": 3, "validation": 1}  # by poet
    train, held_out = (run.corpus.tokenizer.decode(part.rows[split].tokens) for split in ("train", "validation"))
    assert len(train + held_out) == sum(map(len, texts.values()))
    (poet,) = {name.split("/")[0] for name, text in texts.items() if text in held_out}
    assert all((text in held_out) == name.startswith(poet) != (text in train) for name, text in texts.items())
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["corpus_hash"] == run.corpus.hash and stored["data"]["source"] == "sqlite"
    write_database(path, {**texts, "poet3/poem3": "Line x"}.items())
    with pytest.raises(ValueError, match="corpus_hash"):
        prepare(config, tmp_path / "run")


@pytest.mark.parametrize("write, message", [
    (lambda path: None, "is not a file"),
    (lambda path: path.write_text("no database, " * 100), "file is not a database"),
    (lambda path: write_database(path, [("a", "b"), ("c", None)]), "document 'c' holds None"),
])
def test_the_source_tells_what_is_wrong(checkout, tmp_path, own_registries, write, message):
    path = tmp_path / "corpus.db"
    write(path)
    with pytest.raises(ValueError, match=rf"data\.path='.*corpus\.db'.*{message}"):
        open_corpus(get_config(checkout, "sqlite", data=dict(path=str(path))).data)


# metrics.md.

def test_every_number_has_a_row_in_metrics():
    rows = re.findall(r"^\| `(\w+)` \|", METRICS, re.MULTILINE)
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(Record))


def test_the_example_lines_have_the_fields_of_real_ones():
    (example,) = [text for language, text in FENCE.findall(METRICS) if language == "json"]
    train, validation = (json.loads("{" + text) for text in example[1:].split("\n{"))
    base = dict(step=1, loss=1.0, head_loss=[1.0, 1.0], head_accuracy=[1.0, 1.0])
    assert list(train) == list(to_json(Record(split="train", **base, tflops_per_device=1.0, head_weights=[1.0, 1.0])))
    full = Record(split="validation", **base, head_agreement=[1.0, 1.0], expected_accepted_length=1.0,
                  validation_bits_per_byte=[1.0, 1.0])
    assert list(validation) == list(to_json(full))
    for values in (train, validation):
        assert values["loss"] == pytest.approx(sum(values["head_loss"]))
    assert validation["validation_bits_per_byte"] == pytest.approx(
        [loss / math.log(2) for loss in validation["head_loss"]], abs=0.01)
    assert validation["expected_accepted_length"] == pytest.approx(1 + validation["head_agreement"][1])


def test_every_tag_of_tensorboard_is_named():
    number = dict(step=1, loss=1.0, head_loss=[1.0], head_accuracy=[1.0], task_loss=1.0, entropy_term=0.0, entropy=1.0,
                  expected_head_loss=[1.0], exit_share=[1.0], loops={"1": dict(head_loss=[1.0], head_accuracy=[1.0])})
    records = [Record(split="train", **number, tokens_per_second=1.0, tflops_per_device=1.0, mfu=1.0,
                      learning_rate=1.0, grad_norm=1.0, head_weights=[1.0]),
               Record(split="validation", **number, head_agreement=[1.0], expected_accepted_length=1.0,
                      validation_bits_per_byte=[1.0], sources={"NAME": dict(
                          head_loss=[1.0], head_accuracy=[1.0], validation_bits_per_byte=[1.0])})]
    tags = {tag for record in records for tag, _ in scalars(to_json(record))}
    assert set(re.findall(r"`((?:train|validation)/[\w/]+)`", METRICS)) == tags


# Every page.

def code_of(text):
    """Returns the code of a page, inline, fenced and indented, one piece a line; a continued line is one."""
    fenced = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    rest = FENCE.sub("", text).replace("\\\n", " ")
    indented = re.findall(r"^ {4}(.+)$", rest, re.MULTILINE)
    return [*fenced, *indented, *re.findall(r"(?<!`)`([^`]+)`(?!`)", rest)]


def anchor(heading):
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def broken_links(page, text):
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (part and part not in map(anchor, re.findall("^#+ (.+)$", path.read_text(), re.M))):
            found.append(target)
    return found


def unknown_modules(text):
    """Returns the modules of `python -m` that do not exist; words in capitals stand for something."""
    found = []
    for name in re.findall(r"python3? -m ([\w.]+)", "\n".join(code_of(text))):
        package, _, module = name.partition(".")
        path = ROOT / name.replace(".", "/")
        if name.isupper() or module.isupper() or (package == "experiments" and module in FILES):
            continue
        own = (ROOT / package).is_dir()
        exists = path.with_suffix(".py").exists() or (path / "__main__.py").exists() if own else (
            importlib.util.find_spec(package) is not None)
        if not exists:
            found.append(name)
    return found


def unknown_fields(text):
    """Returns the fields, as in --config.a.b or `a.b`, of sections that the config has, which it has not."""
    known = {*configs.flatten(configs.Config()), *parameters_of_experiments()}
    sections = {name.split(".")[0] for name in configs.flatten(configs.Config())}
    code = code_of(text)
    named = re.findall(r"--config\.([a-z_]\w*(?:\.\w+)*)", "\n".join(code))
    for piece in code:
        inline = re.fullmatch(r"([a-z_]+\.[a-z_]\w*)(=.*)?", piece)
        if inline and inline[1].split(".")[0] in sections and not inline[1].endswith((".py", ".json", ".jsonl")):
            named.append(inline[1])
    return [name for name in named if name not in known]


def parameters_of_experiments():
    """Returns the parameters of the experiments' get_config, each a flag --config.NAME."""
    return {argument.arg for path in (ROOT / "experiments").glob("*.py") for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name == "get_config" for argument in node.args.args}


def unknown_targets(text):
    """Returns the targets of `make` in code that the Makefile has not."""
    known = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [found[1] for piece in code_of(text) if (found := re.match(r"(?:\$ )?make ([a-z][\w-]*)", piece))]
    return [name for name in named if name not in known]


def test_the_pages_are_found():
    assert {"docs/extending.md", "docs/metrics.md"} <= {str(page.relative_to(ROOT)) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text = page.read_text()
    assert broken_links(page, text) == []
    assert unknown_modules(text) == []
    assert unknown_fields(text) == []
    assert unknown_targets(text) == []


@pytest.mark.parametrize("check, text, wrong", [
    (unknown_modules, "    python -m experiments.code_byte --workdir=x", ["experiments.code_byte"]),
    (unknown_modules, "```\npython -m mtp_jax.nothing\n```", ["mtp_jax.nothing"]),
    (unknown_modules, "run `python -m nothing_there`", ["nothing_there"]),
    (unknown_modules, "`python -m experiments.NAME`, `python3 -m venv x`, `python -m experiments.code_bytes`", []),
    (unknown_fields, "    run \\\n        --config.model.num_head=3 --config.model.num_heads=3", ["model.num_head"]),
    (unknown_fields, "set `train.num_step`", ["train.num_step"]),
    (unknown_fields, "    run --config.size=1m --config.sice=1m --config.recipe=x", ["sice"]),
    (unknown_fields, "set `train.num_steps=3` in `config.json`, `--config.PATH=VALUE`, `data.path`", []),
    (unknown_targets, "`make demos` and `make test`, and make do", ["demos"]),
    (unknown_targets, "    make demo  # two minutes\n    make tests", ["tests"]),
    (lambda text: broken_links(ROOT / "docs/x.md", text), "[a](nothing.md) [b](metrics.md#loss) [c](metrics.md#lost) "
     "[d](https://example.com/x) ![e](../README.png)", ["nothing.md", "metrics.md#lost", "../README.png"]),
])
def test_what_does_not_exist_is_noticed(check, text, wrong):
    assert check(text) == wrong
