"""The one exception for what a user can mend: its text is the whole answer."""


class InputError(ValueError):
    """Bad input, in one sentence that names what is wrong and what to do about it."""
