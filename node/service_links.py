"""Variables that Kubernetes sets in every pod for every Service of its namespace ("service links").

They begin with the Service's name. One called ``rollcall`` so brings variables that look like
settings of ours, and one called ``rollcall-http`` a ``ROLLCALL_HTTP_PORT`` that is one by its name:

    ROLLCALL_SERVICE_HOST=10.96.0.12        ROLLCALL_PORT=tcp://10.96.0.12:8500
    ROLLCALL_SERVICE_PORT=8500              ROLLCALL_PORT_8500_TCP=tcp://10.96.0.12:8500
    ROLLCALL_SERVICE_PORT_HTTP=8500         ROLLCALL_PORT_8500_TCP_ADDR=10.96.0.12 (_PORT, _PROTO)

Name and value must both have that form; whatever else is in them is taken for what somebody wrote.
Source: kubernetes.io, "Service", discovering services, environment variables.
"""

import re

from ..replication.targets import is_address

_PROTOCOL = "tcp|udp|sctp"
_URL = re.compile(rf"(?:{_PROTOCOL})://(?P<host>\[[^]]+\]|[^:/]+):\d{{1,5}}")
_NUMBER = re.compile(r"\d{1,5}")


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes would set the variable ``name`` to ``value``, for a Service of any name."""
    if re.search(rf"_PORT(_\d+_({_PROTOCOL.upper()}))?$", name):
        url = _URL.fullmatch(value)
        if url is not None:
            return is_address(url["host"].strip("[]"))
    if re.search(rf"_PORT_\d+_({_PROTOCOL.upper()})_PROTO$", name):
        return re.fullmatch(_PROTOCOL, value) is not None
    if re.search(rf"_PORT_\d+_({_PROTOCOL.upper()})_PORT$|_SERVICE_PORT(_[A-Z0-9_]+)?$", name):
        return _NUMBER.fullmatch(value) is not None
    if re.search(rf"_PORT_\d+_({_PROTOCOL.upper()})_ADDR$|_SERVICE_HOST$", name):
        return is_address(value)
    return False
