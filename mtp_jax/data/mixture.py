"""Which row of which source comes next: several sources in one sequence of rows, by arithmetic on its number.

After any number of rows each source has given its share of them, to within as many rows as there are sources, and each
gives its own rows one by one, in its own order. So the place in a mixture is the number of the next row alone, as for a
single source, and how many rows each source gave or will give is known without a pass over them.

The shares are whole numbers here, exactly those of the config: `grain.MapDataset.mix` would scale the smallest to 100
and cut off what lies behind the point, which moves a weight by up to 1%.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mtp_jax.config import MixtureConfig
from mtp_jax.data.rows import RowSource
from mtp_jax.data.split import derived_seed


@dataclasses.dataclass(frozen=True)
class Interleaving:
    """Deals numbers 0, 1, 2, ... out to sources; Grain's selection map, and pickled to worker processes.

    Attributes:
      shares: of each source, whole numbers above 0 that stand for their proportions.
    """

    shares: tuple[int, ...]

    def counts(self, rows: int) -> list[int]:
        """Returns how many of the first `rows` rows come from each source."""
        counts, left, remaining = [], rows, sum(self.shares)
        for share in self.shares:
            others = left * (remaining - share) // remaining
            counts.append(left - others)
            left, remaining = others, remaining - share
        return counts

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[int, int]:
        """Returns (number of the source that gives this row, how many rows it gave before)."""
        before, after, remaining = row, row + 1, sum(self.shares)
        for source, share in enumerate(self.shares[:-1]):
            others, others_after = before * (remaining - share) // remaining, after * (remaining - share) // remaining
            if after - others_after > before - others:
                return source, before - others
            before, after, remaining = others, others_after, remaining - share
        return len(self.shares) - 1, before


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The training rows of all sources of a run.

    Attributes:
      rows: {name: rows of one epoch}.
      shares: of each source, in proportion to the rows that it gives.
      epochs: {name: passes over the source, at most}, of the sources that have a limit.
    """

    rows: dict[str, RowSource]
    shares: tuple[int, ...]
    epochs: dict[str, float]

    @classmethod
    def create(cls, rows: Mapping[str, RowSource], mixture: Sequence[MixtureConfig] = ()) -> Mixture:
        """Returns the mixture of a config.

        Args:
          rows: {name: rows of one epoch}, one entry for each of `mixture`; a single one where that is empty.
          mixture: `data.mixture`.

        Raises:
          ValueError: the epochs of a source leave it no row.
        """
        if not mixture:
            return cls(dict(rows), (1,) * len(rows), {})
        epochs = {part.name: part.epochs for part in mixture if part.epochs is not None}
        for name, limit in epochs.items():
            if not _limit(rows[name], limit):
                raise ValueError(f"data.mixture of {name!r}: epochs={limit:g} of its {len(rows[name]):,} training rows "
                                 "are less than one row: raise epochs, or leave the source out.")
        # A weight is taken as it is written: 0.1 is one in ten, not the binary fraction next to it.
        weights = [Fraction(_limit(rows[part.name], epochs.get(part.name, 1.0))) if part.weight is None
                   else Fraction(str(part.weight)) for part in mixture]
        whole = math.lcm(*(weight.denominator for weight in weights))
        shares = [int(weight * whole) for weight in weights]
        return cls({part.name: rows[part.name] for part in mixture},
                   tuple(share // math.gcd(*shares) for share in shares), epochs)

    @property
    def limits(self) -> dict[str, int]:
        """{name: rows that the source gives, at most}, of the sources that have a limit."""
        return {name: _limit(self.rows[name], epochs) for name, epochs in self.epochs.items()}

    @property
    def length(self) -> int | None:
        """Rows until a source would exceed its limit; None: endless."""
        return min(self._ends().values(), default=None)

    def _ends(self) -> dict[str, int]:
        """Returns for each source with a limit how many rows the mixture could have by it."""
        ends = {}
        for name, limit in self.limits.items():
            low, high = 0, 1
            while self.counts(high)[name] <= limit:
                low, high = high, 2 * high
            while high - low > 1:  # counts rise with the rows: at `low` the limit holds, at `high` it does not
                middle = (low + high) // 2
                low, high = (middle, high) if self.counts(middle)[name] <= limit else (low, middle)
            ends[name] = low
        return ends

    def too_short(self, batch_size: int) -> str:
        """Returns what to tell of a run that needs more batches than the limits allow."""
        ends = self._ends()
        name = min(ends, key=ends.__getitem__)
        return (f"data.mixture of {name!r}: epochs={self.epochs[name]:g} of its {len(self.rows[name]):,} training rows "
                f"last for {ends[name] // batch_size:,} steps of data.batch_size={batch_size}: raise its epochs, lower "
                "its weight, or lower train.num_steps.")

    def counts(self, rows: int) -> dict[str, int]:
        """Returns how many of the first `rows` rows come from each source."""
        return dict(zip(self.rows, Interleaving(self.shares).counts(rows)))

    def dataset(self, seed: int) -> Any:
        """Returns the endless rows as a `grain.MapDataset`, each source shuffled anew every epoch.

        Args:
          seed: of the order. The rows of a single source have the same order whatever its name.
        """
        import grain

        single = len(self.rows) == 1
        orders = [grain.MapDataset.source(rows).shuffle(
            seed=derived_seed(seed, "rows" if single else f"rows {name}")).repeat() for name, rows in self.rows.items()]
        return orders[0] if single else grain.MapDataset.select_from_datasets(orders, Interleaving(self.shares))


def _limit(rows: RowSource, epochs: float) -> int:
    """Returns the rows of so many epochs, of which the last may be a part."""
    return math.floor(Fraction(str(epochs)) * len(rows))
