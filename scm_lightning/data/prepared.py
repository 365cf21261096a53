# SPDX-License-Identifier: Apache-2.0
"""Shards that were prepared before."""

import shlex
from pathlib import Path

from scm_lightning.data.index import INDEX_FILE
from scm_lightning.data.location import is_remote, place_of
from scm_lightning.data.module import ShardDataModule
from scm_lightning.given_files import meant_path


class Shards(ShardDataModule):
    """Shards that `scm prepare` wrote; see `ShardDataModule` for the arguments."""

    def prepare_data(self) -> None:
        """Check that the shards are there.

        Raises:
            ValueError: if they are not.
        """
        if not is_remote(self.root) and not Path(place_of(self.root, INDEX_FILE)).is_file():
            by = self.prepared_by
            if self.root not in by.split():  # it writes those of another root
                by = f"scm prepare --source IMAGES --out {shlex.quote(self.root)}"
            advice = meant_path(self.root) or f"; write them with `{by}`, or give another root"
            raise ValueError(f"there are no shards in {self.root}: it has no {INDEX_FILE}{advice}")
