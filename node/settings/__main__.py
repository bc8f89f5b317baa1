"""``python -m rollcall.node.settings table|sample``: what is made of the table for people to read."""

import sys

from . import table
from .fields import TABLE


def sample() -> str:
    """A ``node.toml`` that starts one node, with everything else at its default in comments."""
    return table.sample(TABLE, {"node_id": "n1", "data_dir": "/var/lib/rollcall"})


def markdown() -> str:
    """The table of the README; a test compares the two."""
    return table.markdown(TABLE)


if __name__ == "__main__":
    made = {"table": markdown, "sample": sample}
    if len(sys.argv) != 2 or sys.argv[1] not in made:
        sys.exit("usage: python -m rollcall.node.settings table|sample")
    sys.stdout.write(made[sys.argv[1]]())
