"""Pictures of the insertion probe: bars of the conditions, as in the source's Figure 10, and the sweep over k."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.decode_plot import COLORS, DASHES, MARKERS
from mtp_jax.analysis.probes.conditions import CONDITIONS, MEANINGFUL, MEANINGLESS, NONE, RANDOM
from mtp_jax.analysis.study_plot import Picture

LABELS = {NONE: "without", MEANINGLESS: "meaningless", MEANINGFUL: "meaningful", RANDOM: "random sentences"}
LOOK = dict(zip(CONDITIONS, COLORS))
Pick = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]  # cell -> {"mean", "interval"}


def draw(result: Mapping[str, Any], path: epath.PathLike, *, k: int) -> epath.Path:
    """Draws bars of the conditions at one length, a group a position, and lines over all lengths.

    Args:
      result: as the probe's file holds it.
      path: of the PNG.
      k: of the bars.
    """
    accuracy = "accuracy" in result["cells"][0]
    place = _chief(result)
    own = _at(result, place)[0]["loss"]
    parts = [part for part in ("question", "answer") if own[part]]
    barred = accuracy or any(_question(cell) for cell in result["cells"])
    if not barred and not parts:
        raise ValueError("The result has neither accuracies nor losses, so there is nothing to draw: questions of one "
                         "token without a reference answer have no loss; measure accuracy, without --loss_only.")
    panels = barred + accuracy + len(parts)
    picture = Picture(panels, title=f"{result['task']}, {result['problems']} problems", rows=1 + (panels == 4))
    groups = [(position, _at(result, position)) for position in result["settings"]["positions"]]
    if barred:
        _bars(picture, groups, k, accuracy)
    cells, x = _at(result, place), "k, tokens" if result["settings"]["same_tokens"] else "k, repetitions"
    panel = int(barred)
    if accuracy:
        _lines(picture, panel, cells, [(1, _accuracy)], x=x, y="accuracy", title=f"position {place}")
        panel += 1
    for part in parts:
        heads = sorted(map(int, own[part]))
        shown = list(dict.fromkeys((heads[0], heads[-1])))
        _lines(picture, panel, cells, [(head, _moved(part, head)) for head in shown], x=x,
               y=f"{part} loss minus that without (nats)", title=f"position {place}" + (
                   f"; dashed: head {shown[-1]}" if len(shown) > 1 else ""))
        panel += 1
    return picture.save(path)


def draw_beside(results: Sequence[Mapping[str, Any]], path: epath.PathLike, *, k: int) -> epath.Path:
    """Draws the bars of several models, a group each, at the first position that all of them have.

    Raises:
      ValueError: there is no such position, a result has not this k, or only some have accuracies.
    """
    places = [place for place in results[0]["settings"]["positions"]
              if all(place in result["settings"]["positions"] for result in results)]
    if not places or any(k not in result["settings"]["k"] for result in results):
        raise ValueError(f"The results to be drawn beside each other must share a position and k={k}.")
    accuracy = {"accuracy" in result["cells"][0] for result in results}
    if len(accuracy) > 1:
        raise ValueError("Some of the results to be drawn beside each other have accuracies and some have not: measure "
                         "all with --loss_only, or none.")
    if accuracy == {False} and not all(any(map(_question, _at(result, places[0]))) for result in results):
        raise ValueError("Some of the results to be drawn beside each other have no loss on their questions, which "
                         "have one token: measure accuracy, without --loss_only.")
    picture = Picture(1)
    names = [f"{epath.Path(result['settings'].get('workdir') or 'model').name}\n{result['task']}" for result in results]
    _bars(picture, [(name, _at(result, places[0])) for name, result in zip(names, results)], k, accuracy.pop())
    return picture.save(path)


def _bars(picture: Picture, groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], k: int, accuracy: bool) -> None:
    """Draws a group of bars a position, or a model: accuracies, or what the question's loss is above that without."""
    axis = picture.frame(0, "", "accuracy" if accuracy else "question loss minus that without (nats)",
                         f"k = {k}, intervals of 95 %")
    names = [name for name in CONDITIONS if (accuracy or name != NONE)
             and any(cell["condition"] == name for _, cells in groups for cell in cells)]
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        for place, (_, cells) in enumerate(groups):
            for cell in cells:
                if cell["condition"] == name and cell["k"] == (0 if name == NONE else k):
                    found = _accuracy(cell) if accuracy else _question(cell)
                    if found is None:  # a question of one token, or of two with the insertion between them
                        continue
                    axis.bar(place + (number - (len(names) - 1) / 2) * width, found["mean"], width * 0.92,
                             yerr=_error(found), color=LOOK[name], ecolor="0.2", capsize=2, zorder=2,
                             error_kw={"linewidth": 1},
                             label=LABELS[name] if LABELS[name] not in axis.get_legend_handles_labels()[1] else None)
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.set_xticks(range(len(groups)), [label for label, _ in groups])
    axis.margins(y=0.25)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def _lines(picture: Picture, panel: int, cells: Sequence[Mapping[str, Any]], series: Sequence[tuple[int, Pick]], *,
           x: str, y: str, title: str) -> None:
    """Draws a line a condition and head over k; all begin where nothing is inserted."""
    axis = picture.frame(panel, x, y, title)
    for number, name in enumerate(one for one in CONDITIONS if one != NONE):
        own = [cell for cell in cells if cell["condition"] in (NONE, name)]
        if len(own) < 2:
            continue
        for (_, pick), dash in zip(series, DASHES):
            points = sorted((cell["k"], found) for cell in own if (found := pick(cell)) is not None)
            axis.errorbar([k for k, _ in points], [found["mean"] for _, found in points],
                          yerr=[[_error(found)[side][0] for _, found in points] for side in (0, 1)],
                          color=LOOK[name], marker=MARKERS[number], linestyle=dash, markersize=4.5, linewidth=1.6,
                          elinewidth=0.8, capsize=2, label=LABELS[name] if dash == DASHES[0] else None)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def _accuracy(cell: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return cell.get("accuracy")


def _question(cell: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns a cell's difference of head 1's loss on the question; None where it has none."""
    return cell["loss"]["question"].get("1", {}).get("difference")


def _moved(part: str, head: int) -> Pick:
    """Returns what gives a cell's difference of a loss from that without insertion; 0 of the latter itself."""
    def pick(cell: Mapping[str, Any]) -> Mapping[str, Any] | None:
        found = cell["loss"][part].get(str(head))
        return None if found is None else found.get("difference", {"mean": 0.0, "interval": (0.0, 0.0)})

    return pick


def _error(found: Mapping[str, Any]) -> list[list[float]]:
    """Returns how far the interval's ends lie below and above the mean, as matplotlib takes it."""
    low, high = found["interval"]
    return [[max(0.0, found["mean"] - low)], [max(0.0, high - found["mean"])]]


def _at(result: Mapping[str, Any], position: str) -> list[Mapping[str, Any]]:
    return [cell for cell in result["cells"] if cell["position"] == position]


def _chief(result: Mapping[str, Any]) -> str:
    """Returns the position whose sweep is drawn: the source's, or else the first."""
    positions = result["settings"]["positions"]
    return "between" if "between" in positions else positions[0]
