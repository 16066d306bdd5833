"""Where a probe's result goes: a JSON, with the picture beside it."""

from __future__ import annotations

from etils import epath


def output_path(out: str, workdir: str, name: str) -> epath.Path:
    """Returns the file of a probe's result.

    Args:
      out: what --out says; "": the workdir's folder probes/.
      workdir: of the model.
      name: of the result there, without its ending.

    Raises:
      ValueError: --out ends otherwise: the picture would overwrite it, or have no place beside it.
    """
    if not out:
        return epath.Path(workdir).expanduser() / "probes" / f"{name}.json"
    path = epath.Path(out).expanduser()
    if path.suffix != ".json":
        raise ValueError(f"--out={out} must end in .json: the picture stands beside it, as .png.")
    return path
