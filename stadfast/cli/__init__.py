"""The command line: ``stadfast fit | score | evaluate | prune | export | bench | stream | watch | info | demo``."""

from .app import app, main

__all__ = ["app", "main"]
