"""The command line: ``stadfast fit | score | evaluate | export | bench | stream | info | demo``."""

from .app import app, main

__all__ = ["app", "main"]
