# SPDX-License-Identifier: Apache-2.0
"""Floor 3: files that a run leaves on the disk: checkpoints, exports, snapshots.

Each appears whole or not at all, carries a checksum, and is read without running code from it.
"""

from scm_lightning.storage.checkpoint import Checkpoint
from scm_lightning.storage.export import Export
from scm_lightning.storage.history import History
from scm_lightning.storage.saved_run import SavedRun
from scm_lightning.storage.snapshot import Snapshot

__all__ = ["Checkpoint", "Export", "History", "SavedRun", "Snapshot"]
