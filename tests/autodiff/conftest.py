# SPDX-License-Identifier: Apache-2.0
"""The cases of the Triton kernels, run in the interpreter: one process for all of a session.

TRITON_INTERPRET is read when triton is first imported, and other tests need it as it is. So the
items of test_attention_triton_cases.py, where they are collected, do not run their functions: the
first one starts pytest on all of them with the interpreter, and each reads its own result.
"""

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
MODULE = "test_attention_triton_cases"


def is_case(item):
    return getattr(item.getparent(pytest.Module), "name", "").endswith(f"{MODULE}.py")


@pytest.fixture(scope="session")
def interpreted(request, tmp_path_factory):
    """What came of the cases of this session: None or what went wrong, by the item's name."""
    if IN_INTERPRETER:
        return {}
    names = [item.nodeid for item in request.session.items if is_case(item)]
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    command = [sys.executable, "-m", "pytest", *names, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junitxml={report}"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
    )
    assert report.exists(), (done.stdout + done.stderr)[-4000:]
    cases = ElementTree.parse(report).iter("testcase")
    return {case.get("name"): wrong(case) for case in cases}


def wrong(case):
    """Why a test did not pass, skipped ones included; None if it did."""
    found = [each for kind in ("failure", "error", "skipped") for each in case.iter(kind)]
    return "\n".join(f"{each.tag}: {each.get('message')}\n{each.text}" for each in found) or None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Report what came of a case in the interpreter, in the place of running it here."""
    if IN_INTERPRETER or not is_case(pyfuncitem):
        return None
    found = pyfuncitem.funcargs["interpreted"].get(pyfuncitem.name, "it was not run")
    if found is not None:
        pytest.fail(found, pytrace=False)
    return True
