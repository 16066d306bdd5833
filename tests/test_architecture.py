"""The shape of the house: imports run one way, files stay small, start-up stays cheap."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = (".ci", "benchmarks", "docs", "experiments", "launch", "mtp_jax", "tests")

# A part imports itself and parts of lower rank, so parts of the same rank do not know each other.
RANKS = {"config": 0, "registry": 0, "files": 0, "terminal": 0, "intervals": 0, "presets": 1, "data": 1, "parallel": 1,
         "model": 2, "objective": 3, "checkpoints": 4, "training": 5, "decoding": 6, "convert": 7,
         "evaluation": 7, "planning": 7, "analysis": 8, "commands": 9}  # one module: what the commands share
# These stand on model and checkpoints: what they share with training may not drag in its loop.
NOT_ON_THE_LOOP = ("decoding", "convert", "analysis", "evaluation", "planning")
# Some GPU images lack these; the model must train and decode there on batches from elsewhere.
OFTEN_MISSING = ("grain", "tensorflow_datasets", "ml_collections")
WITHOUT_THEM = ("mtp_jax.model", "mtp_jax.objective", "mtp_jax.parallel", "mtp_jax.training.step", "mtp_jax.decoding")


def texts():
    """Returns every file that is written by hand: sources, docs, and the files at the top."""
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    found += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    ends = {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".json", ".cfg", ""}
    return sorted(path for path in found if path.suffix in ends and "__pycache__" not in path.parts)


def imports(path):
    """Yields (line, dotted module) of every import of a file, inside functions too; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(root):
    """Returns a line for each import under root/mtp_jax that runs against the order."""
    found = []
    for path in sorted((root / "mtp_jax").rglob("*.py")):
        part = path.relative_to(root / "mtp_jax").parts[0].removesuffix(".py")
        runs_by_name = is_command(ast.parse(path.read_text()))  # python -m mtp_jax.data.train_tokenizer, for one
        for line, name in imports(path):
            package, *rest = name.split(".")
            place = f"{path.relative_to(root)}:{line}: {part} imports {name}"
            if package in ("experiments", "launch", "benchmarks", "tests") and (package != "launch" or part in RANKS):
                found.append(f"{place}: nothing in the package imports an experiment")
            if package != "mtp_jax" or not rest or rest[0] in (part, "__version__"):
                continue
            if rest[0] not in RANKS:
                found.append(f"{place}: nothing imports a command, and a new part needs a rank in this test")
            elif part in RANKS and RANKS[rest[0]] >= RANKS[part] and not (rest[0] == "commands" and runs_by_name):
                found.append(f"{place}: {rest[0]} does not lie below {part}")
            elif part in NOT_ON_THE_LOOP and rest[:2] == ["training", "loop"]:
                found.append(f"{place}: {part} does not stand on the training loop")
    return found


def test_imports_run_one_way():
    assert violations(ROOT) == []


def test_every_part_has_a_rank():
    parts = {path.name for path in (ROOT / "mtp_jax").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert parts <= RANKS.keys()


@pytest.mark.parametrize("file, line, message", [
    ("model/x.py", "from mtp_jax.training import loop", "training does not lie below model"),
    ("data/x.py", "import mtp_jax.parallel.mesh", "parallel does not lie below data"),
    ("config.py", "from mtp_jax import data", "data does not lie below config"),
    ("checkpoints/x.py", "def f():\n  from mtp_jax.training.state import S", "training does not lie below checkpoints"),
    ("decoding/x.py", "from mtp_jax.training.loop import run", "does not stand on the training loop"),
    ("analysis/x.py", "from mtp_jax.training import loop", "does not stand on the training loop"),
    ("training/x.py", "from mtp_jax import train", "nothing imports a command"),
    ("training/x.py", "from mtp_jax import commands", "commands does not lie below training"),
    ("data/x.py", "from mtp_jax import commands\ndef main():\n  pass", None),
    ("data/x.py", "from mtp_jax import training\ndef main():\n  pass", "training does not lie below data"),
    ("training/x.py", "import experiments.code_bytes", "nothing in the package imports an experiment"),
    ("evaluation/x.py", "from mtp_jax.decoding import a", None),
    ("analysis/x.py", "from mtp_jax.training.logs import Record", None),
    ("training/x.py", "from mtp_jax.training import loop\nfrom mtp_jax import __version__", None),
    ("train.py", "from mtp_jax.training import loop\nfrom mtp_jax import commands", None),
])
def test_the_order_is_noticed(file, line, message, tmp_path):
    path = tmp_path / "mtp_jax" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    found = violations(tmp_path)
    assert (not found) if message is None else (len(found) == 1 and message in found[0])


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_model_objective_decoding_and_step_work_without_data_libraries():
    present = [name for name in WITHOUT_THEM
               if any((ROOT / name.replace(".", "/")).with_suffix(end).exists() for end in ("", ".py"))]
    assert len(present) >= 3
    done = run(f"import sys\nsys.modules.update(dict.fromkeys({OFTEN_MISSING}))\n" + "\n".join(
        f"import {name}" for name in present))
    assert done.returncode == 0, done.stderr


def test_importing_the_package_and_its_config_is_cheap():
    done = run("import sys, mtp_jax, mtp_jax.config\nprint(*sys.modules)")
    heavy = {"jax", "flax", "numpy", "ml_collections", "grain", "orbax", "matplotlib", "tensorboardX"}
    assert done.returncode == 0 and not heavy & set(done.stdout.split()), done.stderr


def test_torch_is_no_need_of_the_package():
    top = {f"{path.relative_to(ROOT)}:{line}" for path in (ROOT / "mtp_jax").rglob("*.py")
           for line, name in imports(path) if name.split(".")[0] in ("torch", "transformers", "tensorflow")
           and path.parent.name not in ("convert", "remote_code")}
    assert top == set()


def test_no_source_file_is_over_500_lines():
    long = {str(path.relative_to(ROOT)): length for path in texts() if path.suffix == ".py"
            for length in [len(path.read_text().splitlines())] if length > 500}
    assert long == {}


def is_command(tree):
    """Tells whether a module is run by name: it has a `main`, or a guard at its end."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body) or any(
        isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in tree.body)


def test_commands_are_under_60_lines():
    long = {path.name: length for path in (ROOT / "mtp_jax").glob("*.py") if is_command(ast.parse(path.read_text()))
            for length in [len(path.read_text().splitlines())] if length >= 60}
    assert long == {}


def test_commands_are_told_from_modules():
    assert is_command(ast.parse("def main(argv):\n  pass")) and not is_command(ast.parse("def mains():\n  pass"))
    assert is_command(ast.parse("if __name__ == '__main__':\n  app.run(f)"))


HOME_PATH = re.compile(r"(?<![\w.$}])/(?:root|(?:home|Users)/[a-z][\w-]*)/")


def test_no_text_names_a_path_of_one_machine():
    own = {str(ROOT) + "/", str(pathlib.Path.home()) + "/"} - {"//"}
    found = [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for path in texts()
             for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
             if HOME_PATH.search(line) or any(place in line for place in own)]
    assert found == []


@pytest.mark.parametrize("line, names", [
    ("see " + "/home" + "/someone/data", True), ("/root" + "/x.py", True), ("cd " + "/Users" + "/me/x", True),
    ("$HOME/home/x", False), ("gs://bucket/home/x/y", False), ("the root/branch", False)])
def test_paths_of_one_machine_are_noticed(line, names):
    assert bool(HOME_PATH.search(line)) is names
