"""The study of polynomial arithmetic: its cells, its rule on made-up rows, and its picture."""

import pytest

from experiments import polynomial
from mtp_jax.config import from_config_dict
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tasks.polynomial import PolynomialOptions


def rows(*accuracies):
    """Returns rows whose accuracy in domain is that of n = 1, 2, 4, and a little more with each seed."""
    return [{"num_heads": n, "seed": seed, "accuracy_in_domain": accuracy + 0.004 * seed * (1 + n % 3),
             "accuracy_out_of_domain": 0.1, **{f"accuracy@m={m}": accuracy / m for m in (1, 2, 3, 10)}}
            for n, accuracy in zip(polynomial.HEADS, accuracies) for seed in polynomial.SEEDS]


@pytest.mark.parametrize("accuracies, outcome, words", [
    ((0.5, 0.6, 0.7), "confirmed", "n = 2 is above n = 1; n = 4 is above n = 1"),
    ((0.5, 0.5, 0.7), "confirmed", "n = 4 is above n = 1"),
    ((0.5, 0.4, 0.7), "not confirmed", "n = 4 is above n = 1; n = 2 is below n = 1"),
    ((0.5, 0.4, 0.4), "not confirmed", "n = 2 is below n = 1; n = 4 is below n = 1"),
    ((0.5, 0.495, 0.5), "not confirmed", "neither n = 2 nor n = 4 is told apart"),
    ((0.1, 0.15, 0.2), "not decidable at this size", ""),
    ((0.96, 0.97, 0.98), "not decidable at this size", ""),
])
def test_the_rule(accuracies, outcome, words):
    verdict = polynomial.judge(rows(*accuracies))
    assert verdict.outcome == outcome and words in verdict.sentence
    assert len(verdict.figures) == 2


def test_cells_differ_by_heads_and_seed_alone():
    study = polynomial.study()
    study.validate()
    assert len(study.cells) == 15 and len({cell.settings for cell in study.cells}) == 15
    options = next(text for text in study.cells[4].settings if text.startswith("--config.data.options="))
    found = read_options(PolynomialOptions, options.partition("options=")[2], "polynomial")
    assert (found.seed, found.prime, found.degree, found.max_operations) == (1, 2, 4, 2)
    assert "--config.model.num_heads=2" in study.cells[4].settings
    assert "data.seed=1" in " ".join(study.cells[4].settings) and "train.seed=1" in " ".join(study.cells[4].settings)


def test_settings():
    config = from_config_dict(polynomial.get_config())
    config.validate()
    assert (config.model.d_model, config.data.seq_len, config.train.num_steps) == (512, 1024, 100_000)
    options = read_options(PolynomialOptions, config.data.options, "polynomial")
    assert (options.prime, options.degree, options.min_operations, options.max_operations) == (7, 5, 1, 5)
    other = from_config_dict(polynomial.get_config("100m", pause=10, operations=3))
    assert other.data.seq_len == 2048
    assert read_options(PolynomialOptions, other.data.options, "polynomial").pause == 10
    assert "max_operations=3" in other.data.options and config.objective.prompt_end == ord("=")
    with pytest.raises(ValueError, match="config.size='30M'"):
        polynomial.get_config("30M")


def test_the_picture(tmp_path):
    path, = polynomial.plot(rows(0.5, 0.6, 0.7), tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
