"""The registry as DNS: ``answers`` says what is answered, ``server`` carries it over UDP and TCP."""

__all__: list[str] = []
