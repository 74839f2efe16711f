"""The command line: one file per subcommand, whose docstring is its help.

Everything heavy (torch, NumPy, PyAV) is imported inside the commands, so that ``rqlvc --help`` is instant.
"""

from rqlvc.cli.app import main

__all__ = ["main"]
