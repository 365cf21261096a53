# SPDX-License-Identifier: Apache-2.0
"""`python -m scm_lightning` is `scm`."""

from scm_lightning.cli import main

main()
