# SPDX-License-Identifier: Apache-2.0
"""Statements of what was run here."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from statistics import median

from statement import ROOT, Statement, decimals, result

STEPS = ("fd/1_step", "fd/2_step")
SAMPLES = {
    "| teacher, Heun | {} |": ("scd", "teacher"),
    "| teacher, one call | {} |": ("scd", "denoiser"),
    "| sCD, 1 step | {} |": ("scd", "1_step"),
    "| sCD, 2 steps | {} |": ("scd", "2_step"),
    "| sCT, 1 step | {} |": ("sct", "1_step"),
    "| sCT, 2 steps | {} |": ("sct", "2_step"),
    "| sCT without a teacher, 1 step | {} |": ("sct_scratch", "1_step"),
    "| sCT without a teacher, 2 steps | {} |": ("sct_scratch", "2_step"),
}
"""Rows of the README's table: network calls, then distances."""
ABLATIONS = {
    "time_embedding": {
        "EDM: Fourier features of scale 16, log sigma": "edm",
        "positional features, log sigma": "log_positional",
        "positional features of t (the paper's)": "trigflow",
    },
    "weighting": {
        "learned (the paper's)": "learned",
        "learned, times a second prior weight 1 / (sigma_data tan t)": "learned_extra_prior",
        "constant": "constant",
        "second prior weight by hand, nothing learned": "prior_by_hand",
    },
    "time_transform": {"identity (the paper's)": "identity", "log": "log"},
}
"""Rows of the tables of ablations, and their variants."""
BEST = {"trigflow", "learned"}
"""Variants whose scores are printed in bold."""


def digits(run: str, score: str) -> list[float]:
    """Scores of the digits, one per seed."""
    return [scores[score] for scores in result("digits")[run].values()]


def of_digits() -> Iterator[Statement]:
    """State the distances of the digits."""
    readme, configs = "README.md", "configs/README.md"
    held_out = digits("scd", "fd_block/floor")[0]
    yield Statement(readme, "| real digits, held out | - | - | {} |", decimals(3, held_out))
    for start, (run, row) in SAMPLES.items():
        values, blocks = digits(run, f"fd/{row}"), digits(run, f"fd_block/{row}")
        bold = "**" if row.endswith("step") else ""
        yield Statement(
            readme,
            f"{start} {bold}{{}}{bold} ({{}}, {{}}, {{}}) | {{}} |",
            [
                f"{digits(run, f'nfe/{row}')[0]:.0f}",
                *decimals(3, median(values), *values, median(blocks)),
            ],
        )
    teachers, one, two = (digits("scd", f"fd/{row}") for row in ("teacher", "1_step", "2_step"))
    single = digits("scd", "fd/denoiser")
    yield Statement(
        readme,
        "Two steps of sCD are at {} times the teacher's distance, and one step is {} times nearer",
        [f"{median(two) / median(teachers):.1f}", f"{median(single) / median(one):.0f}"],
    )
    yield Statement(
        configs,
        "They are at {}, {} and {} on seeds 1, 2 and 3. In blocks of 360 they are at {}, {} and "
        "{}, below the {} of real digits.",
        [
            *(f"{student / taught:.2f}" for student, taught in zip(two, teachers, strict=True)),
            *decimals(3, *digits("scd", "fd_block/2_step"), held_out),
        ],
    )
    yield Statement(
        configs, "| the diffusion teacher | {}, {}, {} in 31 calls |", decimals(3, *teachers)
    )
    yield Statement(
        "configs/digits_teacher.yaml",
        "distance {} by Heun in 31 calls, {} by its own single step",
        decimals(3, median(teachers), median(single)),
    )
    for run in ("scd", "sct", "sct_scratch", "mean_flow", "alpha_flow"):
        values = [digits(run, score) for score in STEPS]
        each = " | ".join(", ".join("{}" for _ in of_steps) for of_steps in values)
        row = re.compile(rf"\| `digits_{run}.yaml` \| [^|]* \| ").search(
            (ROOT / configs).read_text()
        )
        if row is None:
            raise ValueError(f"{configs} must have a row of digits_{run}.yaml")
        yield Statement(configs, row.group() + each, decimals(3, *chain(*values)))
        yield Statement(
            f"configs/digits_{run}.yaml",
            "distance {} in one step, {} in two",
            decimals(3, *map(median, values)),
        )


def of_given() -> Iterator[Statement]:
    """State the scores of the digits that samples were given a part of."""
    scores = {run: of_run["seed 0"] for run, of_run in result("digits_given").items()}
    distances, deviations = (
        {run: [of_run[f"{kind}/{n}_step"] for n in (1, 2)] for run, of_run in scores.items()}
        for kind in ("fd", "deviation")
    )
    means = {
        "superres": ("from the four pixels given {} and {}, of pixels", 3),
        "inpaint": ("from the known pixels {} and {}, of pixels", 2),
    }
    for run, (text, places) in means.items():
        file = f"configs/digits_{run}.yaml"
        found = decimals(2, *distances[run])
        yield Statement(file, "distance {} in one step, {} in two; root", found)
        yield Statement(file, text, decimals(places, *deviations[run]))
        row = f"[picture](results/digits_{run}.png) | {{}} | {{}} | 5 min |"
        yield Statement("configs/README.md", row, found)
    yield Statement(
        "configs/README.md",
        "samples' own 2x2 pixels are {} and {} from those given, known pixels {} and {}, root",
        decimals(2, *deviations["superres"], *deviations["inpaint"]),
    )


def of_sweep() -> Iterator[Statement]:
    """State the best of the sweep over samplers."""
    rows = list(result("digits_sweep")["rows"].values())

    def best(num_steps: int, t_mid: float | None = None) -> tuple[float, float | None]:
        found = [row for row in rows if row["num_steps"] == num_steps]
        return min(
            (row["scores"]["fd"]["value"], row["t_mid"])
            for row in found
            if t_mid in (None, row["t_mid"])
        )

    distance, t_mid = best(2)
    yield Statement(
        "scm_lightning/metrics/README.md",
        "Two steps are best at t_mid {}, with {}; at the paper's {} they have {}, one step {}. "
        "Four steps are worse: {} at best.",
        [
            f"{t_mid:g}",
            *decimals(3, distance),
            "1.1",
            *decimals(3, best(2, 1.1)[0], best(1)[0], best(4)[0]),
        ],
    )


def of_fashion() -> Iterator[Statement]:
    """State the distances of Fashion-MNIST."""
    pixels, text = result("fashion16"), "distance {} in one step, {} in two"
    real, teacher = (pixels["scd"]["seed 0"][f"fd/{row}"] for row in ("floor", "teacher"))
    for run in ("scd", "sct"):
        steps = [pixels[run]["seed 0"][score] for score in STEPS]
        yield Statement(
            f"configs/fashion16_{run}.yaml",
            f"real images {{}}): {text}; the teacher has {{}}",
            decimals(3, real, *steps, teacher),
        )
        what = {
            "scd": "sCD, a DiT of 0.64 M at 16x16",
            "sct": "sCT from the same teacher's weights",
        }[run]
        yield Statement(
            "configs/README.md",
            f"| `fashion16_{run}.yaml` | {what} | {{}} | {{}} | {{}} | {{}} |",
            decimals(3, *steps, teacher, real),
        )
    single = pixels["scd"]["seed 0"]["fd/denoiser"]
    yield Statement(
        "configs/fashion16_teacher.yaml",
        "real images {}): distance {} by Heun in 31 calls, {} by its own single step",
        decimals(3, real, teacher, single),
    )


def of_latents() -> Iterator[Statement]:
    """State the distances of latents, from decoded ones and from the images."""
    decoded, images = (result("fashion_latent")[of] for of in ("decoded", "images"))
    rows = ("1_step", "2_step", "teacher", "floor")
    one, two, teacher, real = (decoded[f"fd/{row}"] for row in rows)
    yield Statement(
        "configs/README.md",
        "| `fashion_latent_scd.yaml` | sCD on latents 4x8x8 of images at 32x32 |" + " {} |" * 4,
        decimals(3, one, two, teacher, real),
    )
    yield Statement(
        "configs/fashion_latent_scd.yaml",
        "distance {} in one step, {} in two, from decoded training latents (teacher {}, decoded "
        "test latents {}); from the training images themselves {} and {} ({} and {}).",
        decimals(3, one, two, teacher, real, *(images[f"fd/{row}"] for row in rows)),
    )
    yield Statement(
        "configs/fashion_latent_teacher.yaml",
        "distance {} from decoded training latents by Heun in 31 calls, {} by its own single step "
        "(decoded test latents {}); from the training images themselves {} (test images {}).",
        decimals(
            3,
            *(teacher, decoded["fd/denoiser"], real),
            *(images[f"fd/{row}"] for row in ("teacher", "floor")),
        ),
    )
    texts = {
        "test images | -": "floor",
        "teacher, Heun | 31": "teacher",
        "teacher, one call | 1": "denoiser",
        "sCD, 1 step | 1": "1_step",
        "sCD, 2 steps | 2": "2_step",
    }
    for text, row in texts.items():
        distances = decimals(3, decoded[f"fd/{row}"], images[f"fd/{row}"])
        yield Statement("data/README.md", f"| {text} | {{}} | {{}} |", distances)


WORDS = {
    "held-out emoji": ("scd", "floor"),
    "teacher, 46 calls": ("scd", "teacher"),
    "teacher, one step of 2 calls": ("scd", "denoiser"),
    "sCD, 1 step": ("scd", "1_step"),
    "sCD, 2 steps": ("scd", "2_step"),
    "sCT, 1 step": ("sct", "1_step"),
    "sCT, 2 steps": ("sct", "2_step"),
}
"""Rows of the table of emoji by words."""


def of_words() -> Iterator[Statement]:
    """State the shares of emoji whose nearest real one has a rare word of theirs."""
    columns = ("", "_shuffled", "_known", "_new")
    for text, (run, row) in WORDS.items():
        scores = result("emoji_words")[run]
        shares = [scores[f"rare_word_match{each}/{row}"] for each in columns]
        yield Statement(
            "configs/README.md", f"| {text} | {{}} | {{}} | {{}} | {{}} |", decimals(2, *shares)
        )


def of_words_in_heads() -> Iterator[Statement]:
    """State the same in the heads of the configurations."""
    measured = result("emoji_words")
    real, rows = (
        [f"rare_word_match{each}/floor" for each in ("", "_shuffled")],
        ("1_step", "2_step"),
    )
    name = "rare_word_match/{}".format
    yield Statement(
        "configs/emoji32_words_teacher.yaml",
        "of the name for {} of them (held-out images {}, by chance {}).",
        decimals(2, *(measured["scd"][each] for each in (name("teacher"), *real))),
    )
    for run in ("scd", "sct"):
        yield Statement(
            f"configs/emoji32_words_{run}.yaml",
            "of the name for {} of them in one step, {} in two (teacher {}, held-out images {}, by "
            "chance {}).",
            decimals(2, *(measured[run][each] for each in (*map(name, (*rows, "teacher")), *real))),
        )


def of_clips() -> Iterator[Statement]:
    """State the two distances of clips: per frame, and in time."""
    scores = result("moving_digits")["scd"]["seed 0"]

    def of(row: str) -> list[str]:
        return decimals(3, *(scores[f"{kind}_distance/{row}"] for kind in ("frame", "temporal")))

    rows = {
        "held-out clips": "floor",
        "teacher, 31 calls": "teacher",
        "teacher, one call": "denoiser",
        "sCD of clips, 1 step": "1_step",
        "sCD of clips, 2 steps": "2_step",
    }
    for text, row in rows.items():
        yield Statement("configs/README.md", f"| {text} | {{}} | {{}} |", of(row))
    real = "held-out clips have {} per frame and {} in time"
    yield Statement(
        "configs/moving_digits_teacher.yaml",
        f"{real}): {{}} and {{}} by Heun in 31 calls, {{}} and {{}} by its own single step.",
        [*of("floor"), *of("teacher"), *of("denoiser")],
    )
    yield Statement(
        "configs/moving_digits_scd.yaml",
        f"{real}): {{}} and {{}} in one step, {{}} and {{}} in two; the teacher has {{}} and {{}}.",
        [*of("floor"), *of("1_step"), *of("2_step"), *of("teacher")],
    )


def of_ablations() -> Iterator[Statement]:
    """State means and standard deviations of the ablations."""
    for name, rows in ABLATIONS.items():
        for text, variant in rows.items():
            scores = result(f"ablation_{name}")["variants"][variant]["scores"]
            columns = [each for each in ("fd/teacher", *STEPS) if each in scores]
            cells = [
                "**{} +- {}**" if variant in BEST and each in STEPS else "{} +- {}"
                for each in columns
            ]
            values = [scores[each][of] for each in columns for of in ("mean", "standard_deviation")]
            yield Statement(
                "configs/README.md", f"| {text} | {' | '.join(cells)} |", decimals(3, *values)
            )


def of_benchmarks() -> Iterator[Statement]:
    """State ratios of time, memory and FLOPs."""
    benchmarks = ROOT / "tests" / "benchmarks"
    runs = [
        json.loads((benchmarks / f"{name}.json").read_text()) for name in ("unet", "dit", "mlp")
    ]
    file, units = "tests/benchmarks/README.md", ("seconds", "bytes", "flops")

    def ratios(step: str) -> list[float]:
        plain = [run["steps"]["diffusion"] for run in runs]
        each = zip(runs, plain, strict=True)
        return [run["steps"][step][unit] / base[unit] for run, base in each for unit in units]

    for step in runs[0]["steps"]:
        if step != "diffusion":
            name = "**sCT, dual** (default)" if step == "sCT, dual" else step
            yield Statement(file, f"| {name} |" + " {} |" * 9, decimals(2, *ratios(step)))
    yield Statement(
        "README.md",
        "a consistency step costs {} (U-Net), {} (DiT) or {} (a small MLP) plain diffusion steps",
        [f"{ratio:.1f}" for ratio in ratios("sCT, dual")[::3]],
    )
    for tokens, costs in runs[0]["attention"].items():
        plain = costs.pop("SDPA forward")["seconds"]
        cells = [
            cell
            for cost in costs.values()
            for cell in (f"{cost['seconds'] / plain:.1f}", f"{cost['bytes'] / 2**20:.1f}")
        ]
        yield Statement(file, f"| {int(tokens):,} |" + " {} |" * len(cells), cells)
