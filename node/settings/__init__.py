"""The settings of a node: one table, from which everything else is made.

The fields of ``Settings`` are the table. From them come the keys of the TOML
file, the ``ROLLCALL_*`` variables, the flags, ``--help``, the sample file and
the table in the README:

    field            [section] and key in the file   variable                  flag
    write_timeout_s  [http] write_timeout_s          ROLLCALL_WRITE_TIMEOUT_S  --write-timeout-s

A flag wins over a variable, a variable over the file, the file over the
default. What nobody knows is an error that names the nearest thing that
exists: a misspelt setting that is silently ignored is found at three at night.

    python -m rollcall.node.settings table     the table for the README
    python -m rollcall.node.settings sample    a commented node.toml
"""

from .fields import TABLE, Member, Settings
from .load import build, load

__all__ = ["TABLE", "Member", "Settings", "build", "load"]
