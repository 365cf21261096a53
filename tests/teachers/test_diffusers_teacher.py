# SPDX-License-Identifier: Apache-2.0
"""Teachers from pipelines of diffusers."""

import time, pytest, torch
from teachers.sources_diffusers import KINDS, TRAINED, write_diffusers
from scm_lightning.teachers import DiffusersTeacher

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads(tmp_path, kind, capsys):
    s = time.time()
    write_diffusers(tmp_path, kind, steps=0)
    teacher = DiffusersTeacher(str(tmp_path))
    print(teacher.described(), time.time() - s)
    from scm_lightning.teachers.diffusers_check import check_against_scheduler
    from scm_lightning.teachers.diffusers_schedules import scheduler_of
    import json

    sch = scheduler_of(json.loads((tmp_path / "scheduler/scheduler_config.json").read_text()))
    print(
        "f64", check_against_scheduler(teacher.double(), teacher.network.network, sch).described()
    )
