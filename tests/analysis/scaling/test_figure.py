"""Pictures of scaling laws: which panels there are, what is in them, and when there are too many."""

import struct

import numpy as np
import pytest

from mtp_jax.analysis.scaling import figure
from mtp_jax.analysis.scaling.points import Points

SIZES, TOKENS, LOOPS = (1e6, 2e6, 4e6), (1e8, 2e8, 3e8), (1, 2)


def make(without=(), heads=(1,), sizes=SIZES):
    """Returns a run of each size and T, but one, with three points a head; the loss of head k is k + 1 / D."""
    rows = [(f"{size}-{loops}", size, tokens, loops, head) for loops in LOOPS for size in sizes for head in heads
            for tokens in TOKENS if (size, loops) not in without]
    run, N, D, T, head = zip(*rows)
    return Points({"run": np.array(run), "N": np.array(N), "D": np.array(D), "T": np.array(T), "head": np.array(head),
                   "loss": np.array(head) + 1e8 / np.array(D)})


def panels(points, predicted, held_out=None):
    return figure._grid(points, predicted, figure._mask(points, held_out), "").axes


def test_each_size_and_number_of_loops_has_a_panel_with_shared_axes():
    points = make(without=[(4e6, 2)])
    found = panels(points, points["loss"] + 0.1)
    assert len(found) == 6
    assert [panel.get_title() for panel in found] == ["$R^2$ 0.875, RMSE 0.1"] * 5 + [""]
    texts = [[text.get_text() for text in panel.texts] for panel in found]
    assert texts == [["N = 1M"], ["N = 2M"], ["N = 4M", "$T_m$ = 1"], [], [], ["not run", "$T_m$ = 2"]]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in found}) == 1
    assert found[0].get_xscale() == "linear"


def test_points_are_hollow_where_the_fit_did_not_see_them_and_the_line_is_the_law():
    points = make(sizes=(1e6,))
    held_out = points["D"] > 2e8
    fitted, hollow, line = panels(points, points["loss"] + 0.1, held_out)[0].lines
    assert list(fitted.get_xdata()) == [1e8, 2e8] and list(hollow.get_xdata()) == [3e8]
    assert hollow.get_markerfacecolor() == "white" != fitted.get_markerfacecolor()
    assert hollow.get_markeredgecolor() == fitted.get_markeredgecolor()
    np.testing.assert_allclose(line.get_ydata(), points["loss"][:3] + 0.1)


def test_heads_have_colours_and_do_not_make_r2_larger():
    one, two = make(sizes=(1e6,)), make(sizes=(1e6,), heads=(1, 2))
    first, second = (panels(points, points["loss"] + 0.1)[0] for points in (one, two))
    assert first.get_title() == second.get_title() == "$R^2$ 0.875, RMSE 0.1"
    colors = {line.get_markerfacecolor() for line in second.lines if line.get_linestyle() == "None"
              and len(line.get_xdata())}
    assert len(colors) == 2
    drawn = figure._grid(two, two["loss"], figure._mask(two, None), "")
    assert [text.get_text() for text in drawn.legends[0].texts] == ["measured", "predicted", "head 1", "head 2"]


def test_a_wide_range_of_tokens_is_drawn_by_its_logarithm():
    points = make(sizes=(1e6,))
    points = Points({**points.columns, "D": np.where(points["D"] == 1e8, 1e6, points["D"])})
    assert panels(points, points["loss"])[0].get_xscale() == "log"


@pytest.mark.parametrize("draw, shape", [(figure.plot_grid, (396, 550)), (figure.plot_points, (1056, 462))])
def test_pictures_are_written_as_png(draw, shape, tmp_path):
    points = make(sizes=(1e6,))
    path = draw(points, points["loss"], tmp_path / "new" / "law.png", held_out=points["T"] == 2, title="law")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == shape


def test_all_points_are_drawn_against_the_measured_loss():
    points = make()
    held_out = points["N"] == 4e6
    left, right = figure._plain(points, points["loss"] + 0.1, held_out, "").axes
    labels = [text.get_text() for text in left.get_legend().texts]
    assert labels == ["fitted, 12: $R^2$ 0.875, RMSE 0.1", "held out, 6: $R^2$ 0.875, RMSE 0.1"]
    _, first, second = left.lines
    np.testing.assert_allclose(second.get_ydata() - second.get_xdata(), 0.1)
    assert (len(first.get_xdata()), len(second.get_xdata())) == (12, 6)
    flops = right.lines[0].get_xdata()
    np.testing.assert_allclose(flops, 6 * points["N"][~held_out] * points["D"][~held_out])


def test_points_that_are_no_grid_are_told():
    many = make(sizes=np.linspace(1e6, 2e6, 9))
    assert figure.fits_a_grid(make()) and not figure.fits_a_grid(many)
    assert not figure.fits_a_grid(make().select([0, 3, 6]))  # no curve
    with pytest.raises(ValueError, match="2 x 9 panels cannot be read.*--kind=points"):
        panels(many, many["loss"])


@pytest.mark.parametrize("value, text", [(1364e6, "1.36B"), (999.9e3, "1M"), (275e3, "275k"), (20e9, "20B"), (12, "12"),
                                         (4.83e6, "4.83M"), (1.4e12, "1.4T")])
def test_counts_are_short(value, text):
    assert figure.short(value) == text
