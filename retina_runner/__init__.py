"""retina-run: declarative node diagnostics. One runbook, one instant, one verified archive a node."""

__version__ = "0.1.0"
