"""The one exception that stands for a mistake of the user's."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend: wrong config, missing data, unreadable file.

    Its message is one line that names the thing, what it was, what it should be and, where there is one,
    the command that mends it. The commands print the message alone, without a traceback.
    """
