"""Reading the files that tasks are published in, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.config import nearest
from mtp_jax.evaluation.task import Problem

# What tells a file of one task from that of another: fields that its records have and others' have not.
KNOWN_FIELDS = {
    "humaneval": ("prompt", "entry_point", "canonical_solution", "test"),
    "mbpp": ("text", "test_list", "code"),
    "gsm8k": ("question", "answer"),
    "math500": ("problem", "solution", "subject"),
    "scitldr": ("source", "target", "paper_id"),
    "apps": ("question", "input_output"),
    "code_contests": ("description", "private_tests"),
    "the choice tasks (arc_easy, piqa, ...)": ("instruction", "answer"),
}


def read_text(path: epath.Path) -> str:
    """Returns the text of a file, unpacked where its name ends in .gz.

    Raises:
      ValueError: it is a folder, damaged, or no UTF-8.
    """
    if path.is_dir():
        raise ValueError(f"--data={path} is a folder: name a file.")
    try:
        data = path.read_bytes()
        if path.name.endswith(".gz"):
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start:,}: name a text file.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or no gzip ({error}): fetch it again.") from error


def read_jsonl(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each object of a JSONL file, and where it stands ("FILE, line N") for messages; blank lines are left out.

    Raises:
      ValueError: a line is no JSON object; names the file and the line.
    """
    found = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}): a line must hold one object.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where} holds {type(record).__name__} where an object belongs: a line must hold one "
                             "object.")
        found = True
        yield where, record
    if not found:
        raise ValueError(f"{path} holds no line: name the file of the task.")


def need(record: Mapping[str, Any], where: str, *fields: str) -> None:
    """Raises ValueError where a record lacks fields; says whose data it looks like.

    Args:
      record: an object of a data file.
      where: it stands.
      fields: that it must have.
    """
    missing = [field for field in fields if field not in record]
    if missing:
        likely = next((task for task, own in KNOWN_FIELDS.items() if set(own) <= set(record)), None)
        told = f" It looks like the data of {likely}." if likely else ""
        raise ValueError(f"{where} has the fields {sorted(record)} and lacks {missing}: it is no data of this task."
                         f"{told}")


def need_text(record: Mapping[str, Any], where: str, *fields: str) -> None:
    """Raises ValueError where a record lacks fields, or one of them is no text."""
    need(record, where, *fields)
    for field in fields:
        if not isinstance(record[field], str):
            raise ValueError(f"{where}: {field} is {record[field]!r:.60}, which is no text.")


def make_problems(records: Iterable[tuple[str, dict[str, Any]]], name: Callable[[int, dict[str, Any]], str],
                  make: Callable[[str, dict[str, Any], str], Problem | None]) -> list[Problem]:
    """Returns the problems of some records; of one that is none, a broken problem that says why.

    Args:
      records: where each stands, and what it holds.
      name: (number from 0, record) -> what the problem is called, also where it is broken.
      make: (where, record, name) -> problem, or None for one that is not asked for; raises ValueError where the record
        is none of the task.

    Raises:
      ValueError: the first of the errors, where more than half of the records have one: it is another file.
    """
    found: list[Problem] = []
    errors, count = list[str](), 0
    for number, (where, record) in enumerate(records):
        count += 1
        task_id = name(number, record)
        try:
            problem = make(where, record, task_id)
        except ValueError as error:
            errors.append(str(error))
            problem = Problem(task_id, "", broken=str(error))
        if problem is not None:
            found.append(problem)
    if 2 * len(errors) > count:
        raise ValueError(errors[0])
    return found


def read_completions(path: epath.Path, task_ids: Sequence[str]) -> dict[str, list[str]]:
    """Returns {problem: its completions} of a file of {"task_id", "completion"} objects, in the order of the file.

    Args:
      path: of the file.
      task_ids: of the task's problems.

    Raises:
      ValueError: a line lacks a field, or names a problem that there is not.
    """
    known, found = set(task_ids), {task_id: list[str]() for task_id in task_ids}
    for where, record in read_jsonl(path):
        need(record, where, "task_id", "completion")
        task_id, completion = str(record["task_id"]), record["completion"]
        if not isinstance(completion, str):
            raise ValueError(f"{where}: completion is {completion!r:.60}, which is no text.")
        if task_id not in known:
            raise ValueError(f"{where}: the task has no problem {task_id!r}.{nearest(task_id, task_ids)} Its problems "
                             f"are named like {task_ids[0]!r}.")
        found[task_id].append(completion)
    return found
