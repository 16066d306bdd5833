"""No process of several holds the whole model, neither at the start nor when it goes on from a checkpoint."""

import sys

import pytest

from benchmarks import host_memory


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_process_holds_the_whole_state(tmp_path):
    cases = list(host_memory.measure(tmp_path, 512, 8, host_memory.CASES[:2]))
    assert [case["case"] for case in cases] == ["start", "save", "restore"]
    for case in cases:
        assert case["state_mb"] > case["allowed_mb"] > 3 * case["share_mb"] > 0  # whoever held it all would exceed it
        assert case["met"], case
