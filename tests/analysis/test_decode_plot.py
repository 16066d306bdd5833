"""The decoding plot: which records are drawn, the paper's figures beside them, and what is said of unfit results."""

import json
import struct
import subprocess
import sys

import pytest

from mtp_jax.analysis import decode_plot
from mtp_jax.analysis.decode_plot import PAPER, curves, paper_figures, plot

TEXTS = ("library", "HumanEval", "fairy tales")


def record(num_heads, text, k, **fields):
    """Returns a line of the benchmark whose speedup is k / 2 and whose tokens per forward are k."""
    return {"benchmark": "decode", "batch": 1, "tree": None, "num_heads": num_heads, "text": text, "k": k,
            "speedup": k / 2, "speedup_90": [k / 3, k], "tokens_per_forward": k, **fields}


def records():
    return [record(n, text, k) for n in (4, 8) for text in TEXTS for k in range(1, n + 1)]


def panels(lines):
    return decode_plot._figure(curves(lines, batch=1), batch=1).axes


def drawn(panel):
    """Returns {label: (xs, ys)} of what the legend names."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines
            if not line.get_label().startswith("_")}


def test_the_picture_is_a_png_of_fixed_size(tmp_path):
    path = plot(records(), tmp_path / "docs" / "decode.png")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1210, 528)
    assert len(data) < 200_000
    assert plot(records(), path) == path  # again, over the old one


def test_each_model_and_text_has_a_curve_in_both_panels_beside_the_papers():
    speedup, tokens = map(drawn, panels(records()))
    for n in (4, 8):
        for text in TEXTS:
            ks = list(range(1, n + 1))
            assert speedup[f"{n} heads, {text}"] == (ks, [k / 2 for k in ks])
            assert tokens[f"{n} heads, {text}"] == (ks, ks)
    assert speedup["paper's 7B on tokens, 4 heads, code"] == ([1, 2, 3, 4], [1.0, 1.85, 2.54, 3.05])
    assert tokens["paper's 7B on bytes, 8 heads, code"] == ([1, 2, 4, 8], [1.0, 1.98, 3.84, 7.04])
    assert len(speedup) == len(tokens) == 6 + 4 + 1


def test_colours_tell_texts_and_lines_tell_models():
    named = {line.get_label(): line for line in panels(records())[0].lines}
    looks = {key: (named[f"{key[0]} heads, {key[1]}"].get_color(), named[f"{key[0]} heads, {key[1]}"].get_linestyle())
             for key in ((n, text) for n in (4, 8) for text in TEXTS)}
    assert len({looks[4, text][0] for text in TEXTS}) == 3 and len(set(looks.values())) == 6
    assert all(looks[4, text][0] == looks[8, text][0] and looks[4, text][1] != looks[8, text][1] for text in TEXTS)


def test_nothing_of_ours_lies_outside_the_axes():
    low = [record(4, "library", k, tokens_per_forward=1.0, speedup=1 / k, speedup_90=[0.9 / k, 1.1 / k])
           for k in range(1, 5)]
    for panel in panels(low):
        bottom, top = panel.get_ylim()
        ys = [y for line in panel.lines for y in line.get_ydata()]
        assert bottom < min(ys) and max(ys) < top


def test_only_chains_of_this_batch_are_drawn_in_the_order_of_k():
    lines = [record(4, "library", 2), record(4, "library", 1), record(4, "library", 3, batch=8),
             record(4, "library", 4, tree=[-1, 0]), {"benchmark": "decode_loop", "batch": 1}]
    assert [line["k"] for line in curves(lines, batch=1)[4, "library"]] == [1, 2]
    assert [line["k"] for line in curves(lines, batch=8)[4, "library"]] == [3]


def test_a_later_record_replaces_an_earlier_one():
    lines = [record(4, "library", 1), record(4, "library", 1, speedup=7.0)]
    assert curves(lines, batch=1)[4, "library"][0]["speedup"] == 7.0


def test_the_papers_figures_stand_beside_an_equal_k_and_n_only():
    assert [entry["text"] for entry in paper_figures(4, 3)] == ["code", "Wikipedia", "books"]
    assert paper_figures(8, 8) == [{"table": "S3", "model": "7B", "text": "code", "speedup": 6.39,
                                    "tokens_per_forward": 7.04}]
    assert paper_figures(8, 3) == [] and paper_figures(2, 2) == []
    assert all(curve.speedup.keys() == curve.tokens_per_forward.keys() for curve in PAPER)


@pytest.mark.parametrize("lines, message", [
    ([], "hold no chain decoded at batch 1"),
    ([record(4, "library", 1, batch=8)], "hold no chain decoded at batch 1"),
    ([{"benchmark": "decode", "batch": 1, "tree": None, "num_heads": 4, "k": 1}], "lacks text, speedup, tokens"),
])
def test_unfit_results_are_told(lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot(lines, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_plotting_needs_neither_jax_nor_a_display(tmp_path):
    (tmp_path / "lines.json").write_text(json.dumps(records()))
    code = ("import json, sys\nfrom mtp_jax.analysis.decode_plot import plot\n"
            f"plot(json.load(open({str(tmp_path / 'lines.json')!r})), {str(tmp_path / 'x.png')!r})\n"
            "assert 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()
