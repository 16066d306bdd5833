"""Devices: the mesh, the rules that lay arrays out on it, and the seam that modules name their axes through."""

from mtp_jax.parallel.mesh import AXES, check_batch, check_length, make_mesh, parse_dcn_mesh, parse_mesh
from mtp_jax.parallel.rows import put_rows, rows_of_processes
from mtp_jax.parallel.sharding import LOGICAL_AXES, Layout, constrain, current_layout, use_layout

__all__ = ["AXES", "LOGICAL_AXES", "Layout", "check_batch", "check_length", "constrain", "current_layout", "make_mesh",
           "parse_dcn_mesh", "parse_mesh", "put_rows", "rows_of_processes", "use_layout"]
