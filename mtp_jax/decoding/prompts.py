"""What the command line says, as token ids: prompts and stop tokens."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence

from etils import epath

from mtp_jax.config import GenerationConfig, nearest
from mtp_jax.data.sources.paths import nearest_sibling
from mtp_jax.data.tokenizer import Tokenizer

_FIELDS = ("prompt", "text")  # of a line of JSON, the first that is there


def read_prompts(config: GenerationConfig) -> list[str | bytes]:
    """Returns the prompts of --prompt, then those of --prompt_file.

    Raises:
      ValueError: the file cannot be read, or one of its prompts is missing or empty.
    """
    prompts: list[str | bytes] = [_argument(text) for text in config.prompt]
    name = config.prompt_file
    if not name:
        return prompts
    data = _read(name)
    if name.endswith((".jsonl", ".jsonl.gz")):
        found: Sequence[str | bytes] = [_field(f"--prompt_file={name}, line {number}", line)
                                        for number, line in enumerate(data.splitlines(), 1) if line.strip()]
    else:
        found = [data]
    if not found or not all(found):
        raise ValueError(f"--prompt_file={name} holds an empty prompt: give some text to continue.")
    return [*prompts, *found]


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str | bytes]) -> list[list[int]]:
    """Returns the ids of each prompt, BOS before them.

    Raises:
      ValueError: a prompt is no UTF-8 and the tokenizer takes nothing else, or it has no ids.
    """
    found = []
    for number, text in enumerate(prompts, 1):
        try:
            ids = [int(index) for index in tokenizer.encode(text)]
        except ValueError as error:
            raise ValueError(f"Prompt {number}: {error}") from error
        if not ids:
            raise ValueError(f"Prompt {number}, {text[:40]!r}, has no tokens: give some text to continue.")
        found.append([tokenizer.bos_id, *ids])
    return found


def stop_ids(tokenizer: Tokenizer, stops: Sequence[str], vocab_size: int) -> list[int] | None:
    """Returns the ids of --stop; None where none was given.

    Args:
      tokenizer: of the model.
      stops: each an id, or a text that is one token.
      vocab_size: ids of the model.

    Raises:
      ValueError: an id that there is not, or a text of none or several tokens.
    """
    ids = []
    for stop in stops:
        if stop.isascii() and stop.isdecimal():
            if len(stop.lstrip("0")) > 10 or int(stop) >= vocab_size:
                raise ValueError(f"--stop={stop} is no token: ids are below {vocab_size}.")
            ids.append(int(stop))
            continue
        try:
            found = tokenizer.encode(_argument(stop))
        except ValueError as error:
            raise ValueError(f"--stop={stop!r}: {error}") from error
        if len(found) != 1:
            raise ValueError(f"--stop={stop!r} is {len(found)} tokens, but one token ends a text: give a text that is "
                             f"one, or an id below {vocab_size}.")
        ids.append(int(found[0]))
    return ids or None


def _argument(text: str) -> str | bytes:
    """Returns an argument of the command line, as bytes where they are no UTF-8 (Python then puts surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _read(name: str) -> bytes:
    """Returns what --prompt_file holds, unpacked where its name ends in .gz.

    Raises:
      ValueError: it cannot be read.
    """
    path = epath.Path(name).expanduser()
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError as error:
        raise ValueError(f"--prompt_file={name} does not exist.{nearest_sibling(path)} Name a text file.") from error
    except (OSError, EOFError) as error:
        raise ValueError(f"--prompt_file={name} cannot be read ({getattr(error, 'strerror', None) or error}): name a "
                         "text file that you may read.") from error


def _field(where: str, line: bytes) -> str:
    """Returns the prompt of a line of JSON.

    Raises:
      ValueError: it is no object, or has no such field of text.
    """
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}): write one object a line, such as "
                         '{"prompt": "def main("}.') from error
    if not isinstance(fields, dict):
        raise ValueError(f'{where} is no object: write one a line, such as {{"prompt": "def main("}}.')
    name = next((name for name in _FIELDS if name in fields), None)
    if name is None:
        near = next((found for field in fields for found in [nearest(field, _FIELDS)] if found), "")
        raise ValueError(f'{where} has the fields {list(fields)}, and neither "prompt" nor "text".{near} Rename one.')
    if not isinstance(fields[name], str):
        raise ValueError(f'{where}: "{name}" is {fields[name]!r}, which is no text.')
    return fields[name]
