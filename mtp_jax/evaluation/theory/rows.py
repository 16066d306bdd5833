"""The rows of text that a trained model is measured on: a file's, or the run's own validation data."""

from __future__ import annotations

import numpy as np

from mtp_jax.evaluation.problems import read_text
from mtp_jax.evaluation.request import Request

SHORTEST = 32  # tokens: shorter pieces are left out


def text_rows(request: Request, count: int, shortest: int = SHORTEST) -> list[np.ndarray]:
    """Returns rows of ids as the model was trained on: at most a window each, no document after another in one row.

    With --data they are the text from its beginning, BOS before each row. Without, they are drawn by --seed from the
    run's validation data, read again from where the run read them: pieces of documents, BOS where one begins.

    Args:
      request: whose model it is.
      count: most rows.
      shortest: tokens of a row, at least.

    Raises:
      ValueError: there is no row of so many tokens, or the data cannot be read.
    """
    model = request.model
    if request.data is not None:
        if model.tokenizer is None:
            raise ValueError(f"--data={request.config.data}: the model has no tokenizer.")
        ids, width = model.tokenizer.encode(read_text(request.data)), model.window - 1
        starts = range(0, min(len(ids), count * width), width)
        rows = [np.concatenate([[model.tokenizer.bos_id], ids[start:start + width]]) for start in starts]
    else:
        rows = _validation(request, count, shortest)
    rows = [row.astype(np.int32) for row in rows if len(row) >= shortest]
    if not rows:
        raise ValueError(f"There is no text of {shortest} tokens to measure on: name a longer one, --data=FILE, or "
                         "raise --window.")
    return rows[:count]


def _validation(request: Request, count: int, shortest: int) -> list[np.ndarray]:
    """Returns pieces of the run's validation rows."""
    from mtp_jax.data.corpus import open_corpus  # reads the whole corpus

    config = request.run_config().data
    try:
        corpus = open_corpus(config)
    except ValueError as error:
        raise ValueError(f"The run's own data cannot be read again ({error}); name a text: --data=FILE.") from error
    found: list[np.ndarray] = []
    for part in corpus.parts.values():
        source, room = part.rows["validation"], request.model.window
        mine: list[np.ndarray] = []
        for number in np.random.default_rng(request.config.seed).permutation(len(source)):
            row = source[int(number)]
            for segment in range(1, int(row["segments"].max(initial=0)) + 1):
                piece = row["tokens"][row["segments"] == segment][:room]
                mine += [piece] if len(piece) >= shortest else []
            if len(mine) >= count:
                break
        found += mine[:-(-count // len(corpus.parts))]
    return found
