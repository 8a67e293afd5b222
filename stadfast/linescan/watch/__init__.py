"""The operator's page: what an inspector sees, in a browser.

``page`` is the sink that an inspector tells; ``waterfall`` draws the moving strip and ``board`` keeps the words and
figures, both bounded; ``server`` hands them to browsers and ``access`` says to whose; ``page.html`` shows them.
"""

from __future__ import annotations

from .page import OperatorPage

__all__ = ["OperatorPage"]
