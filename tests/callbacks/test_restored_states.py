# SPDX-License-Identifier: Apache-2.0
"""What callbacks restore is their state; their options are those of this start."""

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from scm_lightning.callbacks.restored_states import keep_given_options


def restored(before, now):
    """A callback that goes on from the state of another."""
    states = {before.state_key: before.state_dict()}
    keep_given_options([now], states)
    if now.state_key in states:
        now.load_state_dict(states[now.state_key])
    return now


def test_patience_is_the_one_given_now():
    before = EarlyStopping("val/fd20_teacher", patience=3)
    before.wait_count = 2
    now = restored(before, EarlyStopping("val/fd20_teacher", patience=8))
    assert (now.patience, now.wait_count) == (8, 2)


def test_a_timer_starts_anew():
    before = Timer(duration={"seconds": 4})
    before._offset = 5.0
    assert restored(before, Timer(duration={"seconds": 4})).time_elapsed() == 0.0


def test_a_moved_run_forgets_files_that_lie_elsewhere(tmp_path):
    """Lightning's own rule, which goes by the folder in the state."""
    before = ModelCheckpoint(dirpath=tmp_path / "old", monitor="x", save_top_k=2)
    before.best_k_models = {str(tmp_path / "old" / "a.ckpt"): 1.0}
    now = restored(before, ModelCheckpoint(dirpath=tmp_path / "new", monitor="x", save_top_k=2))
    assert now.best_k_models == {}
