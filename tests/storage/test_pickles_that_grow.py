# SPDX-License-Identifier: Apache-2.0
"""Small pickles that would fill the memory or take for ever: refused at once, in one line."""

import io
import pickle

import pytest

from scm_lightning.storage.inert_pickle import read_inert
from scm_lightning.storage.persistent_pickle import MAKERS


def doubled(levels: int) -> bytes:
    """A kind of array that is a tuple of two tuples of two, ...: 2^levels when written out."""
    written = b"\x80\x04Nq\x00"
    for level in range(levels):
        same = b"h" + bytes([level])
        written += same + same + b"\x86q" + bytes([level + 1])
    return written + b"cnumpy\ndtype\nh" + bytes([levels]) + b"\x89\x88\x87R."


def deep(levels: int) -> bytes:
    return b"\x80\x04cnumpy\ndtype\nN" + b"\x85" * levels + b"\x89\x88\x87R."


@pytest.mark.parametrize("content", [doubled(60), deep(200_000)])
def test_what_is_refused_is_not_written_out(content):
    with pytest.raises(ValueError, match="of another kind than numbers"):
        read_inert(io.BytesIO(content), MAKERS)


def test_keys_are_not_made_to_collide():
    """Multiples of 2^61 - 1 all have the hash 0: a dictionary of them takes quadratic time."""
    content = pickle.dumps({k * (2**61 - 1): None for k in range(400)}, protocol=4)
    with pytest.raises(ValueError, match="int as a key"):
        read_inert(io.BytesIO(content), MAKERS)
    assert read_inert(io.BytesIO(pickle.dumps({7: "a", "b": 1}, protocol=4)), MAKERS) is not None
