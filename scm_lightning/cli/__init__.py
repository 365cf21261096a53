# SPDX-License-Identifier: Apache-2.0
"""Floor 8: the command line. Imports torch only when it has something to do."""

from scm_lightning.cli.main import main

__all__ = ["main"]
