"""What an experiment may do when its run is done: an export of the model, beside its checkpoints."""

from __future__ import annotations

import os
import tempfile

from mtp_jax.files import REMOTE


def export(workdir: os.PathLike[str]) -> str:
    """Writes the newest checkpoint of a run for transformers, into its folder hf.

    An export that is there already is replaced: it is of the same run when it had fewer steps.

    Returns:
      Lines that tell how it is run there; or why there is none, which is no failure of the run.
    """
    from mtp_jax.checkpoints import CheckpointError  # imports that take seconds; an experiment's --help needs none
    from mtp_jax.convert import convert

    folder = os.fspath(workdir)
    if REMOTE in folder:
        return f"For transformers: python -m mtp_jax.convert --src={folder} --dst=FOLDER --dst_format=hf"
    place = os.path.join(folder, "hf")
    with tempfile.TemporaryDirectory(prefix="hf.before-", dir=folder) as temporary:
        before = os.path.join(temporary, "hf")
        if os.path.isdir(place):
            os.replace(place, before)
        try:
            lines = convert(src=folder, dst=place, dst_format="hf")
        except (ValueError, OSError, CheckpointError) as error:
            return f"Not exported for transformers: {error}"
        finally:
            if os.path.isdir(before) and not os.path.exists(place):
                os.replace(before, place)
    return "\n    ".join([f"Exported to {place}. Where torch and transformers are installed, this runs it:", *lines])
