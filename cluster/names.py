"""Names that come from outside, looked at before anything is done with them."""

import msgspec

from ..replication.errors import Invalid
from ..replication.records import Name


def service_name(name: str) -> str:
    """The name, if a service may be called so. Raises ``Invalid``: what is no name would be another URL (``..``)."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        pass
    else:
        if name not in (".", ".."):
            return name
    raise Invalid(
        f"service: no service can be called {name[:140]!r}: 1 to 128 of letters, digits, . _ -, and not . or ..",
        field="service",
    )
