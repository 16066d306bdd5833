"""Choosing how to draft: the most tokens per second, whatever blocks cost; costs are measured once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import ParallelConfig
from mtp_jax.decoding import auto
from mtp_jax.decoding import calibration as files
from mtp_jax.decoding.calibrate import calibrate_on
from mtp_jax.decoding.calibration import Calibration
from mtp_jax.decoding.generate import DecodingModel, generate
from mtp_jax.decoding.sampling import make_sampling
from mtp_jax.decoding.tree import Tree
from mtp_jax.model import ModelSpec
from mtp_jax.parallel import Layout, make_mesh
from tests.decoding.made_ranks import make_calibration
from tests.decoding.models import random_model
from tests.small_model import make_config, make_params


class Cost:
    """Seconds per forward by a formula; notes what was asked."""

    def __init__(self, base=1.0, node=0.0, head=0.0):
        self.base, self.node, self.head, self.asked = base, node, head, []

    def of(self, tree):
        return self.base + self.node * (tree.size - 1) + self.head * (tree.heads - 1)

    def __call__(self, trees):
        self.asked.extend(trees)
        return [self.of(tree) for tree in trees]


def same_ranks(one, other):
    return [row.tolist() for row in one.rows] == [row.tolist() for row in other.rows]


def test_known_optima():
    always = Calibration(4, 10, (np.zeros((60, 3), np.uint8),))  # every first candidate is right
    assert auto.choose(always, Cost(), heads=4).tree == Tree.chain(4)
    assert auto.choose(always, Cost(), heads=2).tree == Tree.chain(2)
    # 1 / 1, 2 / 1.8, 3 / 3.2, 4 / 5.2: two heads make the most.
    dear = {1: 1.0, 2: 1.8, 3: 3.2, 4: 5.2}
    choice = auto.choose(always, lambda trees: [dear[tree.heads] * tree.size / tree.heads for tree in trees], heads=4,
                         batch=8)
    assert (choice.heads, choice.tokens_per_forward, choice.seconds_per_forward) == (2, 2.0, 1.8)
    assert choice.tokens_per_second == pytest.approx(8 * 2 / 1.8)
    never = Calibration(4, 10, (np.full((60, 3), 10, np.uint8),))
    assert auto.choose(never, Cost(node=0.01), heads=4).tree == Tree.chain(1)
    second = Calibration(2, 10, (np.array([[0], [1], [1]] * 20, np.uint8),))  # two candidates are always enough
    assert auto.choose(second, Cost(node=0.01), heads=2).tree == Tree((-1, 0, 0), (0, 0, 1))


@given(st.integers(0, 50), st.integers(2, 5), st.floats(0, 1), st.floats(0, 2), st.floats(0, 2))
def test_the_choice_beats_every_candidate_also_those_not_measured(seed, heads, right, node, head):
    calibration, cost = make_calibration(seed, heads, right), Cost(1.0, node, head)
    choice = auto.choose(calibration, cost, heads=heads)
    rates = [calibration.expected_tokens(tree) / cost.of(tree) for tree in auto.candidates(calibration, heads)]
    assert choice.tokens_per_second == pytest.approx(max(rates))
    assert len(choice.table) == len(rates)


def test_what_cannot_win_is_not_measured():
    calibration, cost = make_calibration(), Cost(node=1.0)  # the cost of a block is that of its nodes
    choice = auto.choose(calibration, cost, heads=4)
    assert len(set(cost.asked)) < len(choice.table) / 2
    assert {row.tree for row in choice.table if row.seconds_per_forward is None} == {
        row.tree for row in choice.table} - set(cost.asked)
    flat = Cost()  # by what is known, a larger block might cost SLACK of a smaller one
    auto.choose(calibration, flat, heads=4)
    assert len(set(flat.asked)) < len(choice.table)


def test_a_larger_block_may_cost_less_than_a_smaller_one():
    always = Calibration(4, 10, (np.zeros((60, 3), np.uint8),))
    odd = {1: 1.0, 2: 3.0, 3: 3.9, 4: 2.8}  # 1, 0.67, 0.77, 1.43 tokens a second
    assert auto.choose(always, lambda trees: [odd[tree.heads] for tree in trees], heads=4).heads == 4
    middle = {1: 1.0, 2: 2.2, 3: 2.0, 4: 4.4}  # 1, 0.91, 1.5, 0.91
    assert auto.choose(always, lambda trees: [middle[tree.heads] for tree in trees], heads=4).heads == 3


def test_sampling_has_costs_of_its_own():
    model = make_model()
    keys = {auto.conditions(model, 1, 9, make_sampling(**settings)) for settings in
            ({}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 3}, {"typical": True})}
    assert len(keys) == 4 and auto.conditions(model, 1, 9) in keys


def test_known_costs_are_not_measured_again():
    calibration, cost, known = make_calibration(), Cost(node=0.1), {}
    first = auto.choose(calibration, cost, heads=4, known=known)
    assert set(known) == set(cost.asked)
    cost.asked.clear()
    assert auto.choose(calibration, cost, heads=4, known=known) == first
    assert cost.asked == []


def test_what_comes_near_is_measured_side_by_side():
    calibration, asked = make_calibration(), []

    def cost(trees):
        """The first reading of chains is off by up to 5 %."""
        asked.append(list(trees))
        return [(1 + 0.2 * tree.size) * (0.95 if len(trees) == 1 and tree.heads == 2 else 1) for tree in trees]

    choice = auto.choose(calibration, cost, heads=4)
    assert any(len(trees) > 1 for trees in asked)
    assert choice.seconds_per_forward == pytest.approx(1 + 0.2 * choice.tree.size)


def test_the_report_names_the_choice():
    calibration = make_calibration(text="tales.txt")
    lines = auto.report(auto.choose(calibration, Cost(0.002, 0.001), heads=4, batch=8))
    assert len([line for line in lines if "<" in line and "chosen" in line]) == 1
    assert any("tales.txt" in line for line in lines) and any("batch of 8" in line for line in lines)
    assert not any("greedy" in line for line in lines)


def test_the_report_says_for_what_the_figures_are():
    lines = auto.report(auto.choose(make_calibration(), Cost(), heads=4), temperature=0.7)
    assert "for greedy decoding; at temperature 0.7" in lines[-1]


@functools.cache
def make_model():
    config = make_config(num_heads=4, num_layers=1, head_kind="linear", dtype="float32", param_dtype="float32")
    return DecodingModel.from_params(ModelSpec.create(config), make_params(config), window=24)


PROMPTS = [[1, 2, 3], [4]]


@pytest.fixture
def fake(monkeypatch):
    """Costs by a formula instead of the clock's."""
    cost = Cost(0.002, 0.001)
    monkeypatch.setattr(auto, "measure", lambda model, trees, **settings: cost(trees))
    return cost


@pytest.fixture
def told(monkeypatch):
    said = []
    for name in ("info", "warning"):
        monkeypatch.setattr(logging, name, lambda message, *values: said.append(message % values))
    return said


def test_forwards_are_timed_with_the_programs_that_decode():
    model = make_model()
    trees = [Tree.chain(2), Tree((-1, 0, 0), (0, 0, 1))]
    seconds = auto.measure(model, trees, batch=2, prompt_tokens=3, length=12, rounds=2)
    assert all(1e-6 < value < 1 for value in seconds)
    compiled = len(model.programs)
    for tree in trees:
        generate(model, PROMPTS, max_new_tokens=9, tree=tree)
    assert len(model.programs) == compiled


def test_costs_are_measured_once_and_kept(tmp_path, fake, told):
    model = make_model()
    files.save(make_calibration(), tmp_path)
    first = auto.choose_for(model, PROMPTS, max_new_tokens=9, workdir=tmp_path)
    assert fake.asked and first.batch == 2
    assert len(told) == 1 and "Timing" in told[0]
    fake.asked.clear()
    told.clear()
    assert auto.choose_for(model, PROMPTS, max_new_tokens=9, workdir=tmp_path) == first
    assert fake.asked == told == []
    auto.choose_for(model, PROMPTS * 2, max_new_tokens=9, workdir=tmp_path)
    assert fake.asked  # another batch costs something else
    stored = files.load(tmp_path, model)
    assert len(stored.costs) == 2 and same_ranks(stored, make_calibration())


def test_where_nothing_can_be_kept_the_choice_stands(tmp_path, fake, told, monkeypatch):
    files.save(make_calibration(), tmp_path)

    def full(calibration, workdir):
        raise ValueError("no room")

    monkeypatch.setattr(auto, "save", full)
    assert auto.choose_for(make_model(), PROMPTS, max_new_tokens=9, workdir=tmp_path).table
    assert told[-1] == "no room"


def test_a_damaged_calibration_is_refused(tmp_path, fake):
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged .*--calibrate=TEXT"):
        auto.choose_for(make_model(), PROMPTS, max_new_tokens=9, workdir=tmp_path)


def test_without_a_calibration_the_prompts_are_it(tmp_path, fake, told):
    prompts = [[1, 2, 3], list(range(10)) * 2]  # the second leaves 4 places of the window
    choice = auto.choose_for(make_model(), prompts, max_new_tokens=4, workdir=tmp_path)
    assert choice.text == "the prompts given" and len(choice.table) >= 4
    assert "calibrated on the prompts given" in told[0] and list(tmp_path.iterdir()) == []


def test_a_prompt_that_does_not_fit_is_told_before_anything_is_timed(tmp_path, fake):
    files.save(make_calibration(), tmp_path)
    with pytest.raises(ValueError, match="Prompt 2 has 24 tokens .* does not fit the window of 24"):
        auto.choose_for(make_model(), [[1], [2] * 24], max_new_tokens=4, workdir=tmp_path)
    assert fake.asked == []


@pytest.mark.slow
def test_a_mesh_is_calibrated_and_timed_like_one_device(x64, greedy_only):
    """Three rows on devices for two at a time: they are filled up."""
    spec, params, _ = random_model("linear", num_heads=3)
    layout = Layout.create(make_mesh("data:2,tensor:2", jax.devices()[:4]), ParallelConfig().rules)
    prompts = [[1, 2, 3], [4], [5, 6]]
    one, mesh = (DecodingModel.from_params(spec, params, window=24, layout=layout) for layout in (None, layout))
    found = [calibrate_on(model, prompts, new_tokens=12, ranks=3) for model in (mesh, one)]
    assert same_ranks(*found) and found[0].positions == 30
    assert auto.measure(mesh, [Tree.chain(2)], batch=4, prompt_tokens=3, length=15, rounds=1)[0] > 0
    assert auto.conditions(mesh, 4, 15) != auto.conditions(one, 4, 15)


def test_one_head_is_no_choice(fake):
    model = dataclasses.replace(make_model(), heads=1)
    choice = auto.choose_for(model, PROMPTS, max_new_tokens=4)
    assert (choice.tree, choice.tokens_per_forward, len(choice.table)) == (Tree.chain(1), 1.0, 1)


def test_trees_have_names_of_their_own():
    trees = [tree for seed in range(3) for tree in auto.candidates(make_calibration(seed), 4)]
    assert len({auto.tree_name(tree) for tree in trees}) == len(set(trees))
