"""The search: candidates, their estimates and order, what is compiled, and what is said; the compiler is a stand-in."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import ComputeConfig, Config, DataConfig, ModelConfig, ParallelConfig
from mtp_jax.parallel.mesh import parse_mesh
from mtp_jax.parallel.topology import GIB, parse_topology
from mtp_jax.planning import command, fit
from mtp_jax.planning.estimate import Choice, Estimator
from mtp_jax.training.program import build_program

SHAPE = ModelConfig(num_heads=4, num_layers=32, d_model=4096, num_attention_heads=32, vocab_size=32_000,
                    dtype="bfloat16", d_ff_multiple=256)
LARGE = Config(model=SHAPE, data=DataConfig(batch_size=128, seq_len=4096))


def sizes(text, devices):
    return tuple(parse_mesh(text, devices).values())


def estimator(config=LARGE, topology="v5p:4x4x4", slices=1):
    return Estimator.create(config, parse_topology(topology, slices))


class Compiler:
    """Plans as the estimates say, `factor` times the bytes; takes `seconds` of a clock."""

    def __init__(self, config, topology, factor=1.0, seconds=10.0):
        self.there, self.factor, self.seconds = Estimator.create(config, topology), factor, seconds
        self.now, self.asked = 0.0, []

    def clock(self):
        return self.now

    def __call__(self, config):
        self.now += self.seconds
        choice = Choice(sizes(config.parallel.mesh, self.there.topology.num_devices), config.compute.remat,
                        config.compute.microbatches)
        self.asked.append(choice)
        needed, hbm = self.there.memory(choice).total * self.factor, self.there.topology.chip.hbm_bytes
        bounds = self.there.bounds(choice)
        return {"peak_bytes": round(needed), "hbm_bytes": hbm, "fits": needed <= hbm,
                "over_bytes": max(0, round(needed) - hbm), "seconds_by_bound": dataclasses.asdict(bounds),
                "step_seconds": bounds.seconds, "bound": bounds.bound, "mfu": 0.5}


def search(config=LARGE, topology="v5p:4x4x4", settings=(), minutes=15.0, **changes):
    there = parse_topology(topology)
    compiler = Compiler(config, there, **changes)
    return fit.search(config, there, settings, minutes, compiler, compiler.clock), compiler


def test_candidates_cover_the_devices_and_the_rows():
    found = list(fit.choices(estimator(), {}))
    assert len(set(found)) == len(found) > 500
    for one in found:
        mesh = one.sizes
        assert math.prod(one.mesh) == 64 and 128 % (mesh["data"] * mesh["fsdp"] * one.microbatches) == 0
        assert 4 % mesh["pred_heads"] == 0 and mesh["sequence"] == 1
    assert {one.remat for one in found} == {"none", "dots", "full"}
    assert {one.sizes["tensor"] for one in found} == {1, 2, 4, 8, 16}


def test_sequence_is_for_batches_of_few_rows_and_pred_heads_for_heads_abreast():
    few = dataclasses.replace(LARGE, data=DataConfig(batch_size=16, seq_len=4096))
    assert {one.sizes["sequence"] for one in fit.choices(estimator(few), {})} == {1, 2, 4, 8, 16}
    causal = dataclasses.replace(LARGE, model=dataclasses.replace(SHAPE, head_kind="causal"))
    assert {one.sizes["pred_heads"] for one in fit.choices(estimator(causal), {})} == {1}


def test_several_slices_are_joined_by_data():
    found = list(fit.choices(estimator(slices=2), {}))
    assert found and all(one.sizes["data"] % 2 == 0 for one in found)
    assert all(estimator(slices=2).bounds(one).dcn > 0 for one in found[:20])


def test_what_the_command_line_sets_stays():
    config = dataclasses.replace(LARGE, parallel=ParallelConfig(mesh="fsdp:-1,tensor:2"),
                                 compute=ComputeConfig(remat="dots"))
    found, compiler = search(config, settings=["--config.parallel.mesh=fsdp:-1,tensor:2", "--config.compute.remat=dots",
                                               "--config.model.num_heads=4"])
    assert {(one.mesh_text, one.remat) for one in compiler.asked} == {("fsdp:32,tensor:2", "dots")}
    assert found.best is not None


def test_the_batch_is_the_runs_identity_and_stays():
    config = dataclasses.replace(LARGE, data=DataConfig(batch_size=2048, seq_len=4096))
    found, compiler = search(config, "v5e:8x16")
    assert found.best.candidate.choice.microbatches > 1
    assert all(one.apply(config).data == config.data and one.apply(config).model == config.model
               for one in compiler.asked)


def test_the_fastest_that_fits_is_found():
    found, compiler = search()
    assert len(compiler.asked) == 3 and found.best.fits and not found.stopped
    ranked = fit.rank(estimator(), {})
    fitting = [one for one in ranked if one.needed_bytes <= fit.HEADROOM * 95.74 * GIB]
    assert compiler.asked[0] == fitting[0].choice == found.best.candidate.choice
    assert all(one.bounds.likely <= other.bounds.likely for one, other in zip(ranked, ranked[1:]))


def test_a_refusal_puts_the_estimates_right():
    found, compiler = search(factor=4.0, topology="v5p:4x4x4")
    first, second = (one.candidate for one in found.tried[:2])
    limit = fit.HEADROOM * found.tried[0].report["hbm_bytes"]
    assert not found.tried[0].fits and first.needed_bytes < limit and 4 * second.needed_bytes <= limit
    assert found.best is not None


def test_fewer_microbatches_are_tried_where_the_compiler_needs_less_than_was_estimated():
    config = dataclasses.replace(LARGE, data=DataConfig(batch_size=2048, seq_len=4096),
                                 parallel=ParallelConfig(mesh="fsdp:-1"), compute=ComputeConfig(remat="full"))
    settings = ["--config.parallel.mesh=fsdp:-1", "--config.compute.remat=full"]
    found, compiler = search(config, "v5e:8x16", settings, factor=0.5)
    counts = [one.microbatches for one in compiler.asked]
    assert len(counts) > 1 and counts[1] < counts[0] and found.tried[0].fits, counts
    assert found.best.candidate.choice.microbatches == min(one.candidate.choice.microbatches
                                                           for one in found.tried if one.fits)


def test_the_budget_ends_the_search():
    found, compiler = search(minutes=5.0, seconds=200.0)
    assert len(compiler.asked) == 1 and "--budget_minutes=5 does not last" in found.stopped


def test_a_program_that_cannot_be_built_is_told_and_the_next_is_tried():
    there = parse_topology("v5p:4x4x4")
    compiler = Compiler(LARGE, there)

    def plan(config):
        if len(compiler.asked) == 0:
            compiler.asked.append(None)
            raise ValueError("the kernel cannot run here")
        return compiler(config)

    found = fit.search(LARGE, there, [], 15.0, plan, compiler.clock)
    assert found.tried[0].problem == "the kernel cannot run here" and found.best is not None
    assert "the kernel cannot run here" in fit.table(found) and "best" in fit.table(found)


def test_nothing_fits():
    config = dataclasses.replace(LARGE, data=DataConfig(batch_size=4, seq_len=4096))
    found, _ = search(config, "v5e:2x2")
    assert found.best is None and "fits" not in fit.table(found).replace("does not fit", "")
    assert fit.first_topology(estimator(config, "v5e:2x2")) in ("v5e:2x4", "v5e:4x4", "")
    bigger = fit.first_topology(estimator(LARGE, "v5e:2x2"))
    there = estimator(LARGE, bigger)
    assert min(there.memory(one).total for one in fit.choices(there, {})) < 15.75 * GIB


def test_fake_devices_cannot_be_ranked():
    with pytest.raises(ValueError, match="--fit with --topology=fake:8: .*name a TPU topology"):
        fit.search(LARGE, parse_topology("fake:8"), [], 1.0, lambda config: {})


def test_no_mesh_goes_with_the_batch():
    config = dataclasses.replace(LARGE, data=DataConfig(batch_size=7, seq_len=4095))
    with pytest.raises(ValueError, match="found no mesh for 64 devices: with fsdp:64, 7 rows .*data.batch_size"):
        fit.rank(estimator(config), {})


def test_the_command_runs_the_choice():
    choice = Choice(sizes("fsdp:16,tensor:4", 64), "full", 2)
    text = fit.command("paper", ["--config.size=7b", "--config.parallel.mesh=data:-1", "--config.data.path=a b"],
                       choice)
    assert text == ("python -m experiments.paper --workdir=runs/paper --config.size=7b '--config.data.path=a b' "
                    "--config.parallel.mesh=fsdp:16,tensor:4 --config.compute.remat=full "
                    "--config.compute.microbatches=2")


@pytest.mark.parametrize("changes, expected", [
    ({"compute": ComputeConfig(remat="none"), "parallel": ParallelConfig(mesh="fsdp:64")}, "compute.remat=full"),
    ({"compute": ComputeConfig(remat="full"), "parallel": ParallelConfig(mesh="data:64")}, "parallel.mesh=fsdp:"),
    ({"compute": ComputeConfig(remat="full"), "parallel": ParallelConfig(mesh="fsdp:64"),
      "data": DataConfig(batch_size=2048, seq_len=4096)}, "compute.microbatches="),
])
def test_what_would_fit_is_said(changes, expected):
    config = dataclasses.replace(LARGE, **changes)
    topology = parse_topology("v5e:8x8")
    there = Estimator.create(config, topology)
    present = Choice(sizes(config.parallel.mesh, 64), config.compute.remat, 1)
    said = fit.remedies(config, topology, round(there.memory(present).total))
    assert any(part.startswith(expected) for part in said), said


def test_a_larger_topology_is_named_where_nothing_else_helps():
    config = dataclasses.replace(LARGE, data=DataConfig(batch_size=64, seq_len=4096),
                                 compute=ComputeConfig(remat="full"), parallel=ParallelConfig(mesh="fsdp:4"))
    assert fit.remedies(config, parse_topology("v5e:2x2"), 60 * GIB)[-1].startswith("a larger topology: v5e:")


@given(st.sampled_from(["full", "dots", "none"]), st.integers(0, 3), st.sampled_from(["fsdp:64", "fsdp:16,tensor:4"]))
def test_estimates_move_as_they_must(remat, doublings, mesh):
    there, choice = estimator(), Choice(sizes(mesh, 64), remat, 1)
    rows = 2**doublings
    assert there.memory(choice, 2 * rows).total > there.memory(choice, rows).total
    full = dataclasses.replace(choice, remat="full")
    assert there.memory(choice, rows).activations >= there.memory(full, rows).activations
    limit = there.memory(choice, rows).total + 1
    assert there.memory(choice, there.largest_rows(choice, limit)).total <= limit


@pytest.mark.parametrize("mesh", ["data:8", "fsdp:8", "fsdp:2,tensor:2,pred_heads:2"])
def test_the_state_is_counted_as_the_rules_split_it(mesh):
    model = ModelConfig(num_heads=2, num_layers=4, d_model=64, num_attention_heads=4, vocab_size=250)
    config = Config(model=model, data=DataConfig(batch_size=8, seq_len=64), parallel=ParallelConfig(mesh=mesh))
    there = estimator(config, "v5e:2x4")
    batch = 3 * 4 * 64 * 8 / (8 if mesh != "fsdp:2,tensor:2,pred_heads:2" else 2)
    counters = 2 * 4  # the step, and Adam's own
    state = build_program(config).state_bytes() - counters
    assert there.memory(Choice(sizes(mesh, 8), "none", 1)).state == state + batch


def test_json_has_no_number_that_json_has_not():
    assert command.strict({"a": [math.nan, 1.0, (math.inf,)], "b": {"c": -math.inf, "d": "x"}}) == {
        "a": [None, 1.0, [None]], "b": {"c": None, "d": "x"}}
