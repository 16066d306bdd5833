"""Names of topologies, and what is set before JAX starts; no libtpu needed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.parallel import topology
from mtp_jax.parallel.topology import CHIPS, parse_topology, prepare_environment, topology_names
from mtp_jax.training.flops import peak_tflops


@pytest.mark.parametrize("name, slices, devices", [
    ("v5p:4x4x4", 1, 64), ("V5P:4x4x4", 1, 64), ("v5e:4x4", 1, 16), ("v4:2x2x1", 1, 4), ("v6e:16x16", 1, 256),
    ("tpu7x:2x2x1", 1, 8), ("v5e:2x2", 2, 8), ("fake:8", 1, 8), ("v5p:4x4x12", 1, 192)])
def test_known_topologies(name, slices, devices):
    assert parse_topology(name, slices).num_devices == devices


@pytest.mark.parametrize("name, slices, message", [
    ("v5x:4x4", 1, "no generation 'v5x'; there are v4, v5e, v5p, v6e, tpu7x and fake.*Did you mean"),
    ("v5e", 1, "v5e has no topology ''; it has v5e:1x1, v5e:2x2"),
    ("v5e:4x5", 1, 'v5e has no topology \'4x5\'; .*Did you mean "4x'),
    ("v5e:8x4", 1, 'Did you mean "4x8"'), ("v5p:4x4x5", 1, 'Did you mean "4x4x[48]"'),
    ("v5e:16x32", 1, "v5e:16x16"),
    ("v5p:4x4", 1, "v5p:4x4x4, .*other boxes of multiples of 4"),
    ("v5p:6x6x6", 1, "no topology '6x6x6'"),
    ("fake:0", 1, "counted, such as fake:8"), ("fake:eight", 1, "counted"),
    ("fake:8", 2, "fake devices form no slices"),
    ("v5e:2x2", 0, "--slices=0 must be at least 1")])
def test_topologies_that_there_are_not(name, slices, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name, slices)


@given(st.sampled_from(list(CHIPS.values())), st.data())
def test_every_name_that_is_listed_can_be_read(chip, data):
    name = data.draw(st.sampled_from(topology_names(chip)))
    found = parse_topology(f"{chip.name}:{name}")
    assert found.chips == math.prod(map(int, name.split("x"))) <= chip.largest and len(found.shape) == chip.dims


def test_names_are_listed_once_and_smallest_first():
    for chip in CHIPS.values():
        sizes = [math.prod(map(int, name.split("x"))) for name in topology_names(chip)]
        assert sizes == sorted(sizes) and len(set(topology_names(chip))) == len(sizes)


def test_peaks_are_those_that_training_reports_with():
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
    assert {name: peak_tflops(kind) for name, kind in kinds.items()} == {
        name: chip.tflops for name, chip in CHIPS.items()}


def test_environment_for_a_topology_keeps_what_is_set():
    environ = {"TPU_WORKER_HOSTNAMES": "me", "TPU_LIBRARY_PATH": "lib.so"}
    prepare_environment(parse_topology("v5e:2x2"), environ)
    assert environ["JAX_PLATFORMS"] == "cpu" and environ["TPU_WORKER_HOSTNAMES"] == "me"
    assert environ["TPU_SKIP_MDS_QUERY"] == "1" and environ["TPU_LIBRARY_PATH"] == "lib.so"


def test_environment_for_fake_devices_leaves_libtpu_out():
    environ = {"TPU_LIBRARY_PATH": "lib.so", "XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=2"}
    prepare_environment(parse_topology("fake:4"), environ)
    assert "TPU_LIBRARY_PATH" not in environ
    assert environ["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=4"


def test_a_missing_compiler_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'mtp_jax\[tpu\]'.*--topology=fake:8"):
        topology.topology_devices(parse_topology("v5e:2x2"))


def test_a_compiler_is_there_if_its_file_or_its_package_is(monkeypatch, tmp_path):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
    assert not topology.has_libtpu()
    (tmp_path / "libtpu.so").touch()
    assert topology.has_libtpu()


def test_more_fake_devices_than_jax_was_started_with():
    with pytest.raises(ValueError, match="started with 8 CPU devices; set XLA_FLAGS="):
        topology.topology_devices(parse_topology("fake:64"))
