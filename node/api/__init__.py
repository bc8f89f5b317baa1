"""The HTTP faces of a node: one core, one file per dialect, problems in one place."""

from .app import create_app
from .verbs import ApiSettings, Verbs

__all__ = ["ApiSettings", "Verbs", "create_app"]
