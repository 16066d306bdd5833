"""What tests of decoding share."""

import jax
import pytest


@pytest.fixture
def greedy_only(monkeypatch):
    """Leaves the rules that draw tokens out of the programs, which halves the time of compiling them.

    A model that is decoded with under this fixture keeps such programs: it can be used for greedy decoding only.
    """
    monkeypatch.setattr(jax.lax, "switch", lambda index, branches, *operands: branches[0](*operands))
