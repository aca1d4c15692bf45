"""The one error of the driver: its message says what failed, where to read on, and what to do."""


class ClusterError(Exception):
    pass
