"""Files of choice tasks: as their authors publish them, or with the choices inside an instruction."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from etils import epath

from mtp_jax.evaluation.problems import need_text, read_jsonl, read_text

_INSTRUCTION = re.compile(r"(?P<opening>Please [^:]*): *(?P<body>.*?)\s*Answer format: *(?P<form>\S+)\s*", re.DOTALL)
_NUMBERED = re.compile(r"\s*\b(?:Answer|Solution|Option)(\d+):")

# How files of each task are called, letters alone: several have the same form, such as ARC's two sets and OpenBookQA.
_NAMES = {"arc_easy": ("arceasy",), "arc_challenge": ("arcchallenge",), "openbookqa": ("openbookqa", "obqa"),
          "piqa": ("piqa", "physicaliqa"), "siqa": ("siqa", "socialiqa"), "winogrande": ("winogrande",),
          "boolq": ("boolq",), "copa": ("copa",)}


def check_name(path: epath.Path, task: str) -> None:
    """Raises ValueError where a file is called like that of another choice task, and not like this one's."""
    letters = re.sub("[^a-z]", "", path.name.lower())
    called = [name for name, forms in _NAMES.items() if any(form in letters for form in forms)]
    if called and task not in called:
        raise ValueError(f"--data={path} is called like the data of {called[0]}, and --task={task} could not tell them "
                         f"from its own: give --task={called[0]}, or another name to a file that is {task}'s.")


def read_records(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns the records of a file, and where each stands: JSONL, a JSON list, or COPA's XML; also .gz.

    Labels that their authors publish in a file of their own (dev.jsonl and dev-labels.lst) become the field `label`.

    Raises:
      ValueError: it is none of these; names file and line.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".xml"):
        return _read_copa(path)
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _with_labels(path, name, list(read_jsonl(path)))
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path}{line} is not JSON ({error}): the file must hold a list of objects.") from error
    if not records:
        raise ValueError(f"{path} holds no problem: name the file of the task.")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, item {number:,} is {type(record).__name__} where an object belongs.")
    return [(f"{path}, item {number:,}", record) for number, record in enumerate(records, 1)]


def split_instruction(record: Mapping[str, Any], where: str, asks: str, counts: range) -> tuple[str, list[str], int]:
    """Returns question, choices and number of the right one of a record whose choices stand inside its instruction.

    Args:
      record: with the fields `instruction` and `answer`.
      where: it stands, for messages.
      asks: what the instruction of this task begins with.
      counts: how many choices the task's problems have.

    Raises:
      ValueError: it is of another task, or its parts cannot be told apart.
    """
    need_text(record, where, "instruction", "answer")
    match = _INSTRUCTION.fullmatch(record["instruction"])
    if match is None or match["opening"] != asks:
        raise ValueError(f"{where}: the instruction begins {record['instruction']!r:.80}, and this task's begin "
                         f"{asks!r}: it is no data of this task.")
    names = match["form"].split("/")
    question, *parts = _NUMBERED.split(match["body"])
    numbers, choices = parts[::2], [part.strip() for part in parts[1::2]]
    if not choices:  # a question that is answered by one of the names themselves
        choices = names
    elif numbers != [str(number + 1) for number in range(len(names))]:
        raise ValueError(f"{where}: the choices are numbered {', '.join(numbers)}, and the answer format names "
                         f"{len(names)}.")
    if len(choices) not in counts:
        raise ValueError(f"{where} has {len(choices)} choices, and this task's problems have {counts[0]}"
                         f"{f' to {counts[-1]}' if len(counts) > 1 else ''}: it is no data of this task.")
    if not question.strip() or not all(choices):
        raise ValueError(f"{where}: the question or a choice is empty.")
    return question.strip(), choices, right(record["answer"], names, where)


def right(label: Any, labels: list[str], where: str) -> int:
    """Returns the place of the right answer's label among the labels, from 0; ValueError where it is none of them."""
    text = str(int(label)) if isinstance(label, bool) else str(label).strip()
    if text not in labels:
        raise ValueError(f"{where}: the answer is {label!r}, which is none of {', '.join(labels)}.")
    return labels.index(text)


def _read_copa(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns COPA's items with the fields that SuperGLUE gives them."""
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}, line {error.position[0]:,} is no XML ({error}): fetch it again.") from error
    found = []
    for number, item in enumerate(root.iter("item"), 1):
        texts = {name: (item.findtext(tag) or "").strip() for name, tag in (("premise", "p"), ("choice1", "a1"),
                                                                           ("choice2", "a2"))}
        label = {"1": 0, "2": 1}.get(item.get("most-plausible-alternative", ""))
        found.append((f"{path}, item {number:,}", {"id": item.get("id", str(number)), **texts, "label": label,
                                                   "question": item.get("asks-for")}))
    if not found:
        raise ValueError(f"{path} holds no <item>: it is not COPA's XML.")
    return found


def _with_labels(path: epath.Path, name: str, records: list[tuple[str, dict[str, Any]]]
                 ) -> list[tuple[str, dict[str, Any]]]:
    """Returns the records with the labels of the file beside them, if there is one."""
    beside = path.with_name(f"{name.rpartition('.')[0]}-labels.lst")
    if not beside.exists() or any({"label", "answer"} & set(record) for _, record in records):
        return records
    labels = read_text(beside).split()
    if len(labels) != len(records):
        raise ValueError(f"{beside} has {len(labels)} labels for the {len(records)} problems of {path}: they do not "
                         "belong together.")
    return [(where, {**record, "label": label}) for (where, record), label in zip(records, labels)]
