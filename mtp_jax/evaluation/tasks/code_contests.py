"""CodeContests: problems of programming contests (Li et al. 2022), solved by programs that read and write text.

--data is a file or a folder of records with the fields of the dataset's copy on the Hugging Face hub: name,
description, public_tests, private_tests and generated_tests ({"input": [...], "output": [...]}), time_limit
({"seconds", "nanos"} or seconds); as JSONL (also .gz), Parquet, or ArrayRecord files of one JSON object a record. The
protocol buffers of the first publication are to be turned into one of these. Output is compared word by word, case left
aside, numbers with a point within 1e-5.

The prompt says in its first lines what is wanted, as the paper conditions its fine-tuned models on correct solutions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mtp_jax.config import check_choice
from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Problem, Setting
from mtp_jax.evaluation.tasks.programs import ProgramTask, score_program

CONDITIONS = {"correct": "CORRECT SOLUTION\n", "incorrect": "INCORRECT SOLUTION\n", "none": ""}
TESTS = {"all": ("public_tests", "private_tests", "generated_tests"), "hidden": ("private_tests", "generated_tests"),
         "public": ("public_tests",)}
ENDS = (".jsonl", ".jsonl.gz", ".parquet", ".array_record")


def read_records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each record of a file stands, and the record.

    Raises:
      ValueError: the file is none of a known form, or damaged.
    """
    if path.name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        try:
            with path.open("rb") as file:
                for number, record in enumerate(parquet.read_table(file).to_pylist(), 1):
                    yield f"{path}, row {number:,}", record
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error
    elif path.name.endswith(".array_record"):
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(str(path))
        for number, data in enumerate(reader.read_all(), 1):
            try:
                record = json.loads(data)
            except ValueError as error:
                raise ValueError(f"{path}, record {number:,} is not JSON ({error}): turn protocol buffers into JSON "
                                 "objects first.") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, record {number:,} holds {type(record).__name__} where an object belongs.")
            yield f"{path}, record {number:,}", record
        reader.close()
    else:
        yield from read_jsonl(path)


def read_cases(record: Mapping[str, Any], kinds: tuple[str, ...], where: str) -> list[tuple[str, str]]:
    """Returns (input, output) of each test of some kinds.

    Raises:
      ValueError: a kind is not two lists of texts of one length.
    """
    found: list[tuple[str, str]] = []
    for kind in kinds:
        tests = record.get(kind) or {"input": [], "output": []}
        if isinstance(tests, list):  # one object a test
            tests = {side: [test.get(side) for test in tests if isinstance(test, dict)] for side in ("input", "output")}
        given, wanted = (tests.get(side) if isinstance(tests, dict) else None for side in ("input", "output"))
        if not (isinstance(given, list) and isinstance(wanted, list) and len(given) == len(wanted)
                and all(isinstance(text, str) for text in (*given, *wanted))):
            raise ValueError(f"{where}: {kind} is not {{input: [texts], output: [texts]}} of one length.")
        found += zip(given, wanted)
    return found


def own_seconds(record: Mapping[str, Any]) -> float | None:
    """Returns the problem's own time limit; None where it has none."""
    limit = record.get("time_limit")
    if isinstance(limit, dict):
        limit = float(limit.get("seconds") or 0) + float(limit.get("nanos") or 0) / 1e9
    return float(limit) if limit else None


class CodeContests(ProgramTask):
    """CodeContests by pass@k."""

    name = "code_contests"
    about = "Problems of programming contests (CodeContests), run in a sandbox on all their tests, pass@k."
    data_help = "a file of CodeContests, or the folder with them: JSONL, Parquet or ArrayRecord of JSON"
    defaults = Defaults(max_new_tokens=1024, stop=("\nCORRECT SOLUTION", "\nINCORRECT SOLUTION"), samples=1,
                        temperatures=(0.0,), top_p=0.95, k=(1, 10, 100))
    settings = (
        Setting("split", "test", "Of a folder, the files with this in their names are read; empty: all."),
        Setting("condition", "correct", f"What the prompt asks for: one of {', '.join(CONDITIONS)}."),
        Setting("language", "python3", "What the prompt names; programs are run as Python 3. Empty: it names none."),
        Setting("tests", "all", f"One of {', '.join(TESTS)}; hidden leaves out those that the description shows."),
        Setting("time_factor", 0.0, "Seconds of a test as this many times the problem's own limit; 0: --timeout."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the problems of the split."""
        data, split = self.data(request), request.option("split")
        sandbox.layer_here()  # before anything is generated in vain
        check_choice("--set=condition", request.option("condition"), CONDITIONS)
        check_choice("--set=tests", request.option("tests"), TESTS)
        if request.option("time_factor") < 0:
            raise ValueError(f"--set=time_factor={request.option('time_factor')} must be 0 or more.")
        files = [data]
        if data.is_dir():
            folder = data / "data" if (data / "data").is_dir() else data  # as the hub's copy has it
            files = sorted((file for file in folder.iterdir() if file.name.endswith(ENDS) and split in file.name),
                           key=str)
            if not files:
                raise ValueError(f"--data={data} has no file with {split!r} in its name that ends in one of "
                                 f"{', '.join(ENDS)}: give another --set=split.")

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem:
            need_text(record, where, "name", "description")
            cases = read_cases(record, TESTS[request.option("tests")], where)
            return Problem(task_id, self.asked(record, request), {"cases": cases, "seconds": own_seconds(record)})

        return make_problems(
            (found for file in files for found in read_records(file)),
            lambda number, record: str(record.get("name", f"code_contests/{number}")), make)

    def asked(self, record: Mapping[str, Any], request: Request) -> str:
        """Returns the prompt: what is wanted, the description, and a line's end."""
        language = request.option("language")
        return (f"{f'LANGUAGE IS {language}' + chr(10) if language else ''}{CONDITIONS[request.option('condition')]}"
                f"{record['description'].rstrip()}\n")

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Runs all tests of the problem."""
        factor, own = request.option("time_factor"), problem.facts["seconds"]
        return score_program(completion, problem.facts["cases"], fold=True,
                             seconds=factor * own if factor and own else request.config.timeout)


TASK = CodeContests()
