"""The ways in which a command ends without a traceback."""


class Problem(Exception):
    """Wrong input or usage: exit code 2. One line that names the value and the mend."""


class DoesNotHold(Exception):
    """What was asked for does not hold (a rule failed, a budget is exceeded): exit code 1, one line."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after what was done has been saved: exit code 130, one line that says how to go on."""
