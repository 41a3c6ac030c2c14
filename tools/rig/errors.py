"""The two ways a measurement ends early."""


class RigError(Exception):
    """The run cannot go on. The text says what, where and what to do."""


class Skipped(Exception):
    """This one system cannot be measured on this machine; the run goes on and says so loudly."""
