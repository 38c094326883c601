"""What can be said about calibrating: defaults, what was given, and values that are none."""

from __future__ import annotations

import math

import click
import pytest

from videossm.calib.calibrate import settings_for
from videossm.calib.cli.options import calibration_options
from videossm.calib.observers import METHODS as OBSERVED
from videossm.calib.options import CHUNKS, METHOD, METHODS, SEED, SIZE, CalibrationOptions
from videossm.runtime import UserError

NOTHING = CalibrationOptions()


@pytest.fixture
def parsed():
    """`parsed(*words)`: the options that a command line makes of them."""

    @click.command()
    @click.option("--other", default=1)
    @calibration_options
    def command(other, calibrating):
        assert other == 1
        return calibrating

    return lambda *words: command.main([str(word) for word in words], standalone_mode=False)


def test_nothing_given(parsed, test_plan):
    assert parsed() == NOTHING
    assert NOTHING.given == []
    NOTHING.check("fp32")
    settings = settings_for(test_plan, NOTHING)
    assert (settings.method, settings.chunks, settings.data) == ("mse", CHUNKS, "rollouts")
    assert (settings.smoothquant, settings.quantize_attention) == (None, False)
    assert len(settings.prompts) == SIZE
    assert settings.seeds == tuple(range(SEED, SEED + SIZE))


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--calibration-prompts", "file"], "--calibration-prompts"),
        (["--calibration-size", 3], "--calibration-size"),
        (["--calibration-chunks", 3], "--calibration-chunks"),
        (["--calibration-method", "max"], "--calibration-method"),
        (["--smoothquant", 0.5], "--smoothquant"),
        (["--smoothquant", 0], "--smoothquant"),
        (["--quantize-attention"], "--quantize-attention"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_was_given(parsed, words, given):
    assert parsed(*words).given == [given]


def test_settings_follow_the_options(parsed, test_plan):
    words = "--calibration-size 3 --calibration-chunks 4 --calibration-method entropy --smoothquant 0.25"
    options = parsed(*words.split(), "--quantize-attention")
    options.check("int8")
    settings = settings_for(test_plan, options)
    assert (settings.method, settings.chunks, settings.smoothquant) == ("entropy", 4, 0.25)
    assert (len(settings.prompts), len(settings.seeds), settings.quantize_attention) == (3, 3, True)
    assert options.rollouts == "3 rollouts of 4 chunks"
    assert NOTHING.rollouts == f"{SIZE} rollouts of {CHUNKS} chunks"


@pytest.mark.parametrize(
    ("words", "prompts", "told"),
    [
        ([], ["red", "blue", "green"], "a rollout for each line of {file}, of 24 chunks"),
        (["--calibration-size", 5], ["red", "blue", "green", "red", "blue"], "5 rollouts of 24 chunks"),
        (["--calibration-size", 2], ["red", "blue"], "2 rollouts of 24 chunks"),
    ],
    ids=str,
)
def test_prompts_of_a_file(parsed, test_plan, tmp_path, words, prompts, told):
    file = tmp_path / "prompts.txt"
    file.write_text("red\nblue\ngreen\n")
    options = parsed("--calibration-prompts", file, *words)
    settings = settings_for(test_plan, options)
    assert list(settings.prompts) == prompts
    assert len(set(settings.seeds)) == len(prompts), "a prompt that comes again has another seed"
    assert options.rollouts == told.format(file=file)


@pytest.mark.parametrize("size", [1, 2 * SIZE + 1])
def test_as_many_prompts_as_rollouts_by_default(parsed, test_plan, size):
    settings = settings_for(test_plan, parsed("--calibration-size", size))
    assert len(settings.prompts) == len(settings.seeds) == size


@pytest.mark.parametrize(
    ("words", "precision", "message"),
    [
        (["--calibration-size", 0], "int8", "--calibration-size: got 0, expected 1 or more; change it"),
        (["--calibration-chunks", -1], "int8", "--calibration-chunks: got -1, expected 1 or more; change it"),
        (
            ["--calibration-method", "median"],
            "int8",
            "--calibration-method: got median, expected one of max, percentile, entropy, mse; choose one",
        ),
        (["--smoothquant", 1.5], "int8", "--smoothquant: got 1.5, expected 0 to 1, as 0.5; change it"),
        (["--smoothquant", -0.1], "int8", "--smoothquant: got -0.1, expected 0 to 1, as 0.5; change it"),
        (["--smoothquant", math.nan], "int8", "--smoothquant: got nan, expected 0 to 1, as 0.5; change it"),
        (
            ["--smoothquant", 0.5],
            "fp8",
            "--smoothquant: got it with fp8, expected int8, which needs it; leave it out",
        ),
        (
            ["--calibration-prompts", "nowhere.txt"],
            "int8",
            "--calibration-prompts: got nowhere.txt, which does not exist, expected a text file; check the path",
        ),
        (
            ["--calibration-prompts", "x" * 300],
            "int8",
            f"--calibration-prompts: got {'x' * 300}, which does not exist, expected a text file; check the path",
        ),
    ],
    ids=["size", "chunks", "method", "alpha 1.5", "alpha -0.1", "alpha nan", "fp8", "no file", "long name"],
)
def test_values_that_are_none(parsed, tmp_path, monkeypatch, words, precision, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parsed(*words).check(precision)
    assert str(error.value) == message


def test_the_methods_are_those_that_exist():
    """Written twice, as the command line does without NumPy until it needs it."""
    assert METHODS == OBSERVED
    assert METHOD in METHODS
