# SPDX-License-Identifier: Apache-2.0
"""`scm` that sends itself a signal at a moment that is given: MOMENT NUMBER SIGNAL WORDS...

    import      before the NUMBER-th module is imported
    extension   before the NUMBER-th that an extension imports while it is loaded; Python forgets
                what is raised there
    collection  in a hook of the NUMBER-th collection of garbage, where it forgets that too
    fork        before the fork, behind it, or in the child, which signals both; in turn
    call        at the NUMBER-th call of a Python function
    NAME        at the NUMBER-th call of a function of that name

All are counted from when the command takes signals.
"""

import gc
import os
import runpy
import signal
import sys
from importlib.machinery import ExtensionFileLoader


def takes_signals():
    return callable(signal.getsignal(signal.SIGUSR1))


class Sender:
    """Counts moments, and sends the signal once."""

    def __init__(self, number, signum):
        self.left, self.signum = number, signum

    def reach(self, *to):
        """Another moment of the kind; the signal goes to this process, or to those given."""
        if takes_signals():
            self.left -= 1
            if self.left == 0:
                for pid in to or (os.getpid(),):
                    os.kill(pid, self.signum)

    def find_spec(self, name, path=None, target=None):
        """As a finder of modules, which finds none."""
        self.reach()


def at_imports(sender):
    sys.meta_path.insert(0, sender)


def in_extensions(sender):
    for name in ("create_module", "exec_module"):
        original = getattr(ExtensionFileLoader, name)

        def loading(self, argument, original=original):
            sys.meta_path.insert(0, sender)
            try:
                return original(self, argument)
            finally:
                sys.meta_path.remove(sender)

        setattr(ExtensionFileLoader, name, loading)


def in_collections(sender):
    gc.callbacks.append(lambda phase, info: sender.reach())


def at_forks(sender):
    number, sender.left = sender.left, -1

    def side(of_turn, *to):
        def hook():
            if takes_signals() or of_turn == 2:
                forks[of_turn] += 1
                if (forks[of_turn] - 1) * 3 + of_turn == number - 1:
                    for pid in [*(each() for each in to), os.getpid()]:
                        os.kill(pid, sender.signum)

        return hook

    forks = [0, 0, 0]
    os.register_at_fork(before=side(0), after_in_parent=side(1), after_in_child=side(2, os.getppid))


def at_calls(sender, name=None):
    def look(frame, event, argument):
        if event == "call" and name in (None, frame.f_code.co_name):
            sender.reach()
            if sender.left <= 0:
                sys.setprofile(None)

    sys.setprofile(look)


if __name__ == "__main__":
    moment, number, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sender = Sender(number, signal.Signals[name])
    arranged = {
        "import": at_imports,
        "extension": in_extensions,
        "collection": in_collections,
        "fork": at_forks,
        "call": at_calls,
    }
    arranged.get(moment, lambda sender: at_calls(sender, moment))(sender)
    sys.argv = ["scm", *sys.argv[4:]]
    runpy.run_module("scm_lightning", run_name="__main__", alter_sys=True)
