"""The registry as DNS.

``answers`` says what is answered, ``message`` lays that out in bytes, ``server`` carries it over UDP and TCP.
"""

__all__: list[str] = []
