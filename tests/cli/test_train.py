"""`afmrl train` and `afmrl config`: presets, settings files and options; stopping early."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from afmrl_jax.cli import main as cli
from afmrl_jax.cli import train
from afmrl_jax.config import RunConfig, read_config, to_dict
from afmrl_jax.errors import ConfigError


class Recorder:
    """In the place of the pipeline: notes what it is given."""

    given: tuple = ()

    def __init__(self, folder, config):
        Recorder.given = (folder, config)

    def execute(self):
        return Path("report.html")

    def evaluation(self):
        return {}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Parses `afmrl train`; returns the folder and the settings that the pipeline is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "Pipeline", Recorder)
    monkeypatch.setattr(train, "open_run", lambda out, cluster: out)
    monkeypatch.setattr(train, "text_table", lambda evaluation: "")

    def run(*arguments):
        cli.main(["train", *map(str, arguments)])
        return Recorder.given

    return run


@pytest.mark.parametrize(
    ("arguments", "folder", "config"),
    [
        ((), "runs/demo", RunConfig.demo()),
        (("--fast",), "runs/fast", RunConfig.fast()),
        (("--preset", "fast"), "runs/fast", RunConfig.fast()),
        (("--preset=fast", "--out", "here"), "here", RunConfig.fast()),
        (("--catalogue", "furniture"), "runs/demo", RunConfig()),
        (("--fast", "--catalogue=furniture"), "runs/fast", RunConfig.fast("furniture")),
    ],
)
def test_a_preset_gives_the_settings_and_the_folder(asked, arguments, folder, config):
    assert asked(*arguments) == (Path(folder), config)


def test_options_win_over_the_file_and_the_file_over_the_preset(asked, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\nagcl:\n  gamma: 1\n  optimizer: {learning_rate: 1e-4}\n")
    _, config = asked("--fast", "--config", file, "--seed", "4")
    fast = RunConfig.fast()
    assert config.seed == 4
    assert config.agcl.optimizer.learning_rate == 1e-4
    assert isinstance(config.agcl.gamma, float), "a stage's inputs are hashed"
    assert config.agcl.steps == fast.agcl.steps
    assert config.agcl.optimizer.weight_decay == fast.agcl.optimizer.weight_decay
    assert config.distill == fast.distill


def test_the_file_may_name_the_catalogue_on_which_the_preset_depends(asked, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("catalogue: my-shop\nseed: 3\n")
    assert asked("--config", file)[1] == RunConfig(catalogue="my-shop", seed=3)
    drawn = asked("--config", file, "--catalogue", "marketplace")[1]
    assert drawn == dataclasses.replace(RunConfig.demo(), seed=3)
    # Too short for the pictures of the marketplace, which are not asked for.
    file.write_text("catalogue: my-shop\ntext: {buckets: [20, 30]}\n")
    assert asked("--config", file)[1].text.buckets == (20, 30)


def test_a_runs_own_config_is_a_file_of_settings(asked, tmp_path):
    config = dataclasses.replace(RunConfig.fast(), seed=5)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    assert asked("--config", file)[1] == config
    old = file.read_text().replace('"optimizer"', '"optimiser"')
    file.write_text(old)
    assert asked("--config", file)[1] == config


@pytest.mark.parametrize(
    ("preset", "catalogue"),
    [("demo", "marketplace"), ("fast", "marketplace"), ("pretrained", "furniture")],
)
def test_what_config_prints_is_a_file_of_settings(preset, catalogue, tmp_path, capsys):
    cli.main(["config", "--preset", preset])
    file = tmp_path / "all.yaml"
    file.write_text(capsys.readouterr().out)
    assert yaml.safe_load(file.read_text())["catalogue"] == catalogue
    # Whatever the preset, for the file names every setting.
    assert read_config(file, RunConfig.fast()) == getattr(RunConfig, preset)()


def test_config_takes_options_too(capsys):
    cli.main(["config", "--fast", "--agcl.steps", "7"])
    assert yaml.safe_load(capsys.readouterr().out)["agcl"]["steps"] == 7


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.yaml", "agcl: {gama: 1}", "agcl.gama: unknown name"),
        ("a.json", '{"sed": 1}', "sed: unknown name"),
        ("a.yaml", "agcl: {steps: many}", "agcl.steps: input should be a valid integer"),
        (
            "a.yaml",
            "rar: {baseline: ppo}",
            "rar.baseline: input should be 'grpo', 'dr_grpo', 'rloo', 'greedy' or 'best'",
        ),
        ("a.yaml", "agcl: 3", "agcl: input should be an object"),
        ("a.yaml", "- 1", "the file must hold settings by name"),
        ("a.yaml", "save_every: 0", "save_every must lie between 1 and"),
        ("a.yaml", "a: [1", "while parsing"),
        ("a.json", "{", "at column 2"),
        ("a.toml", "", "must end in .yaml, .yml, .json"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_name(tmp_path, name, text, complaint):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file, RunConfig.fast())
    assert str(caught.value).startswith(str(file))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "large"], "no preset 'large'; choose from demo, fast, pretrained"),
        (["--fast", "--preset", "demo"], "--fast is short for --preset fast"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--preset", "pretrained"], "give --embedder.weights"),
        (["--preset", "pretrained", "--embedder.weights", "r"], "give --generator.weights"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    asked, tmp_path, capsys, arguments, complaint
):
    with pytest.raises(SystemExit) as caught:
        asked(*arguments)
    assert caught.value.code == 1
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_several_processes_may_train(asked, monkeypatch, capsys):
    monkeypatch.setattr(cli, "launched_together", lambda: True)
    asked("--fast")
    with pytest.raises(SystemExit):
        cli.main(["report", "--run", "runs/demo"])
    assert "`afmrl train` and `afmrl annotate` run on many" in capsys.readouterr().err


@pytest.fixture
def tiny_file(tiny_run, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(to_dict(tiny_run)))
    return path


@pytest.mark.usefixtures("tiny_models")
def test_a_run_stops_after_a_stage(tiny_file, tmp_path, capsys):
    base = ["train", "--config", str(tiny_file), "--out", str(tmp_path / "runs" / "tiny")]
    with pytest.raises(SystemExit):
        cli.main([*base, "--stop-after", "distil"])
    assert "no such stage; choose from tokenizer, distill, " in capsys.readouterr().err
    cli.main([*base, "--stop-after", "tokenizer"])
    assert "done up to and including tokenizer" in capsys.readouterr().out
    run = tmp_path / "runs" / "tiny"
    assert (run / "tokenizer" / "DONE.json").is_file()
    assert not (run / "distill").exists()


def test_the_version_is_said(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("afmrl-jax 0.")


def test_the_pretrained_preset_fits_the_weights(asked, tmp_path):
    """Patches and chat format are those of the named model."""
    folder = tmp_path / "qwen3"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    options = ["--preset", "pretrained", "--embedder.weights", folder]
    options += ["--generator.weights", folder]
    config = asked(*options)[1]
    assert (config.image, config.text) == (RunConfig.qwen3().image, RunConfig.qwen3().text)
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    assert asked(*options)[1].image == RunConfig.pretrained().image
    # A family of its own in each role.
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "qwen3_vl"}')
    config = asked(*options[:-1], other)[1]
    assert config.image_of("embedder") == RunConfig.pretrained().image
    assert config.image_of("generator") == RunConfig.qwen3().image
    assert config.text_of("generator").layout == "qwen3"


def test_weights_are_named_with_their_licenses_once_each():
    config = RunConfig.pretrained()
    hub = "/models/Qwen2.5-VL-3B-Instruct"
    config = dataclasses.replace(
        config,
        embedder=dataclasses.replace(config.embedder, weights=hub),
        generator=dataclasses.replace(config.generator, weights=hub),
    )
    (line,) = train.origins(config)
    assert line.startswith("license of Qwen/Qwen2.5-VL-3B-Instruct: qwen-research (research")
    assert train.origins(RunConfig.demo()) == []
