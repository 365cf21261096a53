# SPDX-License-Identifier: Apache-2.0
"""The texts state the numbers of the committed results, and no others."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from stated import statements
from statement import Statement
from torch import nn

ROOT = Path(__file__).parents[1]

SCORE = re.compile(r"(?<![-\d.,])(?<!sigma_rel )(?<!ema_)\d{1,2}\.\d{3}(?![\d.])")
"""A distance, as all texts write it."""
OTHERS = {
    "data/README.md": {"0.695", "0.483", "0.729", "2.048"},  # means of latents; a version
}
TEXTS = sorted(
    str(file.relative_to(ROOT))
    for pattern in ("*.md", "*/README.md", "scm_lightning/*/README.md", "configs/**/*.yaml")
    for file in ROOT.glob(pattern)
    if file.name != "CHANGELOG.md"  # says what was, not what is
)


@pytest.mark.parametrize("file", sorted({each.file for each in statements()}))
def test_numbers_are_those_of_the_results(file):
    content = (ROOT / file).read_text()
    for statement in statements():
        if statement.file == file:
            assert statement.written_into(content) == content, statement.text


def test_another_number_is_found_and_replaced(tmp_path):
    statement = Statement("x.yaml", "distance {} in one step, {} in two", ["0.048", "0.049"])
    wrong = "# Expected: distance 0.052 in\n# one step, 1,048.5 in two; a plain 0.052\n"
    right = "# Expected: distance 0.048 in\n# one step, 0.049 in two; a plain 0.052\n"
    assert statement.written_into(wrong) == right
    assert statement.written_into(right) == right
    for content in ("", wrong + wrong):
        with pytest.raises(ValueError, match=r"must state once, not [02] times: distance"):
            statement.written_into(content)


@pytest.mark.parametrize("file", [each for each in TEXTS if "benchmarks" not in each])
def test_every_score_has_a_result(file):
    """No distance stands in a text but those that are written there from results."""
    content = (ROOT / file).read_text()
    if file.endswith(".yaml"):
        content = "\n".join(line for line in content.split("\n") if line.startswith("#"))
    of_results = [
        range(*match.span())
        for statement in statements()
        if statement.file == file
        for match in statement.find(content)
    ]
    free = [
        match.group()
        for match in SCORE.finditer(content)
        if not any(match.start() in each for each in of_results)
        and match.group() not in OTHERS.get(file, ())
    ]
    assert not free


@pytest.mark.parametrize(
    ("config", "key", "millions"),
    [
        ("cifar10_sct", "student", "60.1"),
        ("digits_scd", "student", "0.92"),
        ("fashion16_scd", "student", "0.64"),
    ],
)
def test_parameters_are_counted(config, key, millions):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    given = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text())
    options = parser.parse_object({"network": given["model"]["init_args"][key]})
    with torch.device("meta"):
        network = parser.instantiate_classes(options).network
    counted = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"{counted:.{len(millions.partition('.')[2])}f}" == millions
    stating = [file for file in TEXTS if f"{millions} M" in (ROOT / file).read_text()]
    assert stating
