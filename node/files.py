"""How this process shares out the open files that it may have (``ulimit -n``).

Clients' connections, the questions of health checks and the node's own files all count
towards one limit, past which nothing can be opened: so each has its part beforehand.
"""

import resource

from .checks.probes import ASKED_MAX

CHECKS_SHARE = 4  # a quarter of all for the questions of health checks


def checks_max() -> int:
    """How many questions of health checks may be under way at a time."""
    files = _limit()
    return ASKED_MAX if files is None else max(16, min(ASKED_MAX, files // CHECKS_SHARE))


def _limit() -> int | None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if files == resource.RLIM_INFINITY else files
