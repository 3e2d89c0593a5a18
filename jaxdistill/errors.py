"""The one exception for what a user can mend, whose text is the whole answer; and the one that is none."""


class InputError(ValueError):
    """Bad input, in one sentence that names what is wrong and what to do about it."""


class Interrupted(Exception):
    """The run was asked to stop, has saved its state and can be continued."""

    def __init__(self, signal_number: int, step: int, steps: int):
        super().__init__(f"stopped at step {step} of {steps}; the same command continues from there")
        self.signal_number = signal_number
