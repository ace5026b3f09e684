"""The two ways in which a command ends without a traceback."""


class Problem(Exception):
    """Wrong input or usage: exit code 2. One line that names the value and the mend."""


class DoesNotHold(Exception):
    """What was asked for does not hold (a rule failed, a budget is exceeded): exit code 1, one line."""
