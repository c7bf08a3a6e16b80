"""What this machine does not allow."""

from __future__ import annotations

from trimtab import TrimtabError


class Cannot(TrimtabError):
    """The fault cannot be injected here; the message says why."""
