"""Octavo is an inference server for Mixtral-style sparse models.

`octavo.server`, `octavo.engine` and `octavo.model` are the folders of those names at the top of the repository. In the
repository this folder holds a symbolic link to each; in an installation the three lie here.
"""

__version__ = "0.2.0"
