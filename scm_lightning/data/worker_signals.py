# SPDX-License-Identifier: Apache-2.0
"""Loader workers leave signals to the process that they load for.

Ctrl-C and a scheduler's signals go to all processes of a job. A worker that died of one would take
the training process with it, before that has saved its state. So a worker ignores them, but for a
SIGTERM of its own parent, by which torch ends workers that hang.
"""

import os
import signal
import threading


def leave_signals_to_parent(worker_id: int) -> None:
    """Ignore signals but those of the parent; torch calls this as `worker_init_fn`.

    Args:
        worker_id: number of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # not on Linux: workers are ended with their group
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started later inherit it
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
