"""ARC, PIQA, SIQA, WinoGrande, OpenBookQA, BoolQ and COPA, asked without examples and as lm-evaluation-harness words
them. Each is read as its authors publish it, as the Hugging Face hub has it, or in instruction form."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mtp_jax.evaluation.loglikelihood_choice import Choices, ChoiceTask
from mtp_jax.evaluation.problems import need, need_text
from mtp_jax.evaluation.task import Setting
from mtp_jax.evaluation.tasks.choice_files import right, split_instruction

_ANSWER = "Please choose the correct answer to the question"
_SOLUTION = "Please choose the correct solution to the question"
_BLANK = "Please choose the correct answer to fill in the blank to complete the given sentence"
_TRUTH = "Please answer the following question with true or false, question"

Record = Mapping[str, Any]


def science(counts: range, context: str, record: Record, where: str, options: Record) -> Choices:
    """ARC and OpenBookQA: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, or the hub's
    {"question" or "question_stem", "choices": {"text", "label"}, "answerKey"}."""
    del options
    if "instruction" in record:
        return _asked(context, *split_instruction(record, where, _ANSWER, counts))
    plain = not isinstance(record.get("question"), Mapping)
    name = "question_stem" if plain and context == _BARE else "question"  # OpenBookQA's on the hub, and ARC's
    need(record, where, name, "answerKey")
    question: Any = record[name]
    choices: Any = record.get("choices")
    try:
        if isinstance(question, Mapping):
            question, choices = question["stem"], question["choices"]
        if not isinstance(choices, Mapping):
            choices = {field: [choice[field] for choice in choices] for field in ("text", "label")}
        texts, labels = list(choices["text"]), list(choices["label"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: the question has no choices with text and label: it is no data of this "
                         "task.") from error
    return _asked(context, str(question), [str(text) for text in texts],
                  right(record["answerKey"], [str(label) for label in labels], where))


def piqa(record: Record, where: str, options: Record) -> Choices:
    """PIQA: {"goal", "sol1", "sol2"} and a label from 0."""
    del options
    context = "Question: {}\nAnswer:"
    if "instruction" in record:
        return _asked(context, *split_instruction(record, where, _SOLUTION, range(2, 3)))
    need_text(record, where, "goal", "sol1", "sol2")
    need(record, where, "label")
    return _asked(context, record["goal"], [record["sol1"], record["sol2"]], right(record["label"], ["0", "1"], where))


def siqa(record: Record, where: str, options: Record) -> Choices:
    """SIQA: {"context", "question", "answerA", "answerB", "answerC"} and a label from 1."""
    del options
    context, names = "Q: {}\nA:", ("answerA", "answerB", "answerC")
    if "instruction" in record:
        return _asked(context, *split_instruction(record, where, _ANSWER, range(3, 4)))
    need_text(record, where, "context", "question", *names)
    need(record, where, "label")
    return _asked(context, f"{record['context']} {record['question']}", [record[name] for name in names],
                  right(record["label"], ["1", "2", "3"], where))


def winogrande(record: Record, where: str, options: Record) -> Choices:
    """WinoGrande: {"sentence" with a blank "_", "option1", "option2", "answer" from 1}. What follows the blank is
    scored, after each of the options in it."""
    del options
    if "instruction" in record:
        sentence, texts, gold = split_instruction(record, where, _BLANK, range(2, 3))
    else:
        need_text(record, where, "sentence", "option1", "option2")
        need(record, where, "answer")
        sentence, texts = record["sentence"], [record["option1"], record["option2"]]
        gold = right(record["answer"], ["1", "2"], where)
    before, blank, rest = sentence.partition("_")
    if not blank or not rest.strip():
        raise ValueError(f"{where}: the sentence {sentence!r:.80} has no blank _ with something behind it.")
    rest = rest.strip()
    return Choices(tuple((before + text, f" {rest}") for text in texts), (rest, rest), gold)


def boolq(record: Record, where: str, options: Record) -> Choices:
    """BoolQ: {"passage", "question", "answer": bool}, or the hub's with a label; without a passage closed-book."""
    del options
    if "instruction" in record:
        question, names, place = split_instruction(record, where, _TRUTH, range(2, 3))
        gold, passage = int(names[place] == "true"), ""
    else:
        need_text(record, where, "question", "passage")
        label = record.get("answer", record.get("label"))
        if label not in (0, 1):
            raise ValueError(f"{where}: the answer is {label!r}, which is neither true nor false.")
        question, passage, gold = record["question"], record["passage"], int(label)
    asked = f"Question: {question.strip().removesuffix('?')}?\nAnswer:"
    return Choices.after(f"{passage}\n{asked}" if passage else asked, ("no", "yes"), gold, closed=not passage)


def copa(record: Record, where: str, options: Record) -> Choices:
    """COPA: the XML, or SuperGLUE's {"premise", "choice1", "choice2", "question": "cause" | "effect", "label"}."""
    need_text(record, where, "premise", "choice1", "choice2", "question")
    need(record, where, "label")
    words = {"cause": "because", "effect": options["effect"]}
    texts, premise = [record["choice1"], record["choice2"]], record["premise"].strip()
    if record["question"] not in words or not premise or not all(texts):
        raise ValueError(f"{where}: the premise or a choice is empty, or asks for {record['question']!r}, neither "
                         "cause nor effect.")
    # The two become one sentence.
    return Choices.after(f"{premise.rstrip('.')} {words[record['question']]}",
                         [text[0].lower() + text[1:] for text in texts], right(record["label"], ["0", "1"], where))


def _asked(context: str, question: str, texts: list[str], gold: int) -> Choices:
    """Returns choices that continue a context with the question in it."""
    return Choices.after(context.replace("{}", question), texts, gold)


_QUESTION, _BARE = "Question: {}\nAnswer:", "{}"
_EFFECT = Setting("effect", "therefore", "Word between a premise and its effect; before a cause stands \"because\".")
TASKS = {task.name: task for task in (
    ChoiceTask("arc_easy", "Science questions of grade school, the easy ones, by log-likelihood.",
               "ARC-Easy-Test.jsonl, or its instruction form",
               functools.partial(science, range(3, 6), _QUESTION), usual=4),
    ChoiceTask("arc_challenge", "Science questions of grade school, the hard ones, by log-likelihood.",
               "ARC-Challenge-Test.jsonl, or its instruction form",
               functools.partial(science, range(3, 6), _QUESTION), usual=4),
    ChoiceTask("piqa", "Which of two ways reaches a goal, by log-likelihood.",
               "valid.jsonl with valid-labels.lst beside it, or the instruction form", piqa),
    ChoiceTask("siqa", "What people do and feel, by log-likelihood.",
               "dev.jsonl with dev-labels.lst beside it, or the instruction form", siqa),
    ChoiceTask("winogrande", "Whom a blank stands for, by the log-likelihood of what follows it.",
               "dev.jsonl, or the instruction form", winogrande),
    ChoiceTask("openbookqa", "Science questions of grade school without the book, by log-likelihood.",
               "test.jsonl, or its instruction form", functools.partial(science, range(4, 5), _BARE)),
    ChoiceTask("boolq", "Questions of yes and no, by log-likelihood.",
               "dev.jsonl with passages, or the instruction form, which has none and is asked closed-book", boolq),
    ChoiceTask("copa", "Causes and effects, by log-likelihood.", "copa-test.xml, or SuperGLUE's val.jsonl", copa,
               (_EFFECT,)))}
