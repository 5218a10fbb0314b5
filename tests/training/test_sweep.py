"""Sweep files: their points, the names of run folders, and mistakes that are found before jobs are queued."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from support.runs import TINY, losses

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import config_folders
from ltg_mdlm.reporting.html_report import page
from ltg_mdlm.training import launch
from ltg_mdlm.training.check import describe_sweep, require_valid
from ltg_mdlm.training.sweep import Sweep, folder_name, open_sweep, short_names

POWER, SCHEDULE = "plugins.uniform_mdlm.derivative_power", "plugins.uniform_mdlm.schedule"
SMALL = (
    "data.builtin_words=4000",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_attention_heads=2",
)
NAMED = sorted(path.stem for folder in config_folders() for path in (folder / "sweeps").glob("*.yaml"))


@pytest.fixture
def sweep(tmp_path: Path):
    """Opens a sweep file with this content."""

    def opened(*sets: str, **content) -> Sweep:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return open_sweep(str(path), sets)

    return opened


def test_points_are_numbered_in_file_order_with_seeds_fastest(sweep):
    points = sweep(grid={SCHEDULE: ["linear", "cosine"], POWER: [0, 1]}, seeds=[3, 1]).points
    assert [p.index for p in points] == list(range(8))
    assert [tuple(p.values.values()) for p in points[:5]] == [
        ("linear", 0, 3),
        ("linear", 0, 1),
        ("linear", 1, 3),
        ("linear", 1, 1),
        ("cosine", 0, 3),
    ]


def test_exclusions_leave_out_points_that_match_all_of_their_values(sweep):
    points = sweep(
        grid={SCHEDULE: ["linear", "cosine"], POWER: [0, 0.5, 1]},
        seeds=[0, 1],
        exclude=[{SCHEDULE: "linear", POWER: [0, 0.5]}, {SCHEDULE: "cosine", "seed": 1}],
    ).points
    assert [tuple(p.values.values()) for p in points] == [
        ("linear", 1, 0),
        ("linear", 1, 1),
        ("cosine", 0, 0),
        ("cosine", 0.5, 0),
        ("cosine", 1, 0),
    ]
    assert [p.index for p in points] == list(range(5))


def test_run_folders_are_named_by_the_values_that_vary(sweep):
    opened = sweep(grid={SCHEDULE: ["linear"], POWER: [0, 0.5]})
    assert [str(opened.folder(p)) for p in opened.points] == [
        "runs/mine/derivative_power=0-s0",
        "runs/mine/derivative_power=0.5-s0",
    ]


def test_a_new_seed_or_value_leaves_the_names_of_other_points_as_they_were(sweep):
    before = {p.name for p in sweep(grid={POWER: [0, 1]}).points}
    after = {p.name for p in sweep(grid={POWER: [0.5, 0, 1]}, seeds=[7, 0]).points}
    assert before < after


def test_key_paths_are_shortened_as_far_as_they_stay_unique():
    assert short_names(["plugins.a.power", "plugins.b.power", "model.dropout"]) == {
        "plugins.a.power": "a.power",
        "plugins.b.power": "b.power",
        "model.dropout": "dropout",
    }
    assert short_names(["seed", "data.seed"]) == {"seed": "seed", "data.seed": "data.seed"}


AWKWARD = [
    None, True, 1, "1", "null", "true", 0.1, "a/b", "a:b", "a b", "..", "", [0.9, 0.98], "0.9,0.98", {"a": 1}, "x" * 40,
    "x" * 41, "ø", "æ", -1, "yes",
]  # fmt: skip


def test_different_values_never_share_a_folder_and_names_are_safe_in_every_file_system():
    names = [folder_name({"key": value}, seed=0) for value in AWKWARD]
    assert len({name.lower() for name in names}) == len(AWKWARD)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-=") for name in names
    )


def test_long_names_are_cut_and_still_differ():
    values = [{f"quite_a_long_name_{i}": i for i in range(20)} | {"last": last} for last in (1, 2)]
    names = [folder_name(v, seed=12) for v in values]
    assert len(set(names)) == 2
    assert all(len(name) < 160 and name.endswith("-s12") for name in names)


def test_a_point_has_the_settings_of_the_file_and_the_command_line(sweep):
    opened = sweep(
        "model.hidden_size=60",
        configs=["uniform_cosine", "freq_cosine_small"],
        grid={"optimizer.betas": [[0.8, 0.9]]},
        seeds=[4],
    )
    config = opened.settings(opened.point(0)).config
    assert config.optimizer.betas == (0.8, 0.9)
    assert (config.model.hidden_size, config.model.num_hidden_layers, config.seed) == (60, 12, 4)
    assert config.run_folder() == Path("runs/mine/s4")


def test_plugins_can_vary_beside_the_options_of_those_selected(sweep):
    opened = sweep(grid={POWER: [0], "plugin": ["gpt_bert", ["uniform_mdlm", "freq_mdlm"]]})
    assert opened.points[0].name == "plugin=gpt_bert-s0"
    one, two = (opened.settings(point).config.plugins for point in opened.points)
    assert (set(one), set(two)) == ({"uniform_mdlm", "gpt_bert"}, {"uniform_mdlm", "freq_mdlm"})
    assert one["uniform_mdlm"]["derivative_power"] == two["uniform_mdlm"]["derivative_power"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"gird": {}},
            r"sweep\.gird: no such setting \(did you mean 'grid'\?\)\n  set in .*mine\.yaml\n.*: configs, grid",
        ),
        ({"grid": {POWER: 1}}, rf"sweep\.grid\.{POWER}: Input should be a valid list"),
        ({"grid": {POWER: []}}, rf"sweep\.grid\.{POWER}: List should have at least 1 item"),
        ({"grid": {POWER: [1, 1.0]}}, "derivative_power has the value 1.0 twice"),
        ({"grid": {"seed": [1]}}, "list the seeds under seeds:"),
        ({"grid": {"run.out": ["x"]}}, "run folders are named by the sweep"),
        ({"grid": {"plugins.freq_mdlm": [{}], "plugins.freq_mdlm.power": [1]}}, "one is part of the other"),
        ({"grid": {"plugin": [{"freq_mdlm": {}}]}}, "plugin takes names of plugins, or lists of them"),
        ({"seeds": [1, 1]}, "seeds has the value 1 twice"),
        ({"seeds": []}, r"sweep\.seeds: List should have at least 1 item"),
        ({"grid": {POWER: [0]}, "exclude": [{POWER + "s": 0}]}, rf"not in the grid \(did you mean '{POWER}'\?\)"),
        ({"grid": {POWER: [0]}, "exclude": [{POWER: 2}]}, "never has the value 2"),
        ({"grid": {POWER: [1]}, "exclude": [{POWER: True}]}, "never has the value True"),
        ({"grid": {POWER: [0]}, "exclude": [{POWER: 0}]}, "leave no point"),
    ],
)
def test_mistakes_in_a_sweep_file_are_explained(sweep, content, message):
    with pytest.raises(UserError, match=message):
        sweep(**content)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"optimizer.lr": [0.1], "training.max_stepz": [1]}, "did you mean 'max_steps'"),
        ({"plugins.freq_mdlm.power": [0.1, -1]}, r"point 1 \(power=-1-s0\) .*\n.*plugins\.freq_mdlm\.power"),
        ({"plugins.freq_mdlm.pwer": [0.1]}, r"did you mean 'power'\?\)\n  set in .*mine\.yaml \(point 0\)"),
        ({"plugins.freq_mdln.power": [0.1]}, "did you mean 'freq_mdlm'"),
        ({"plugin": ["gpt_bert", "freq_mdln"]}, r"(?s)point 1 \(plugin=freq_mdln-s0\).*did you mean 'freq_mdlm'"),
    ],
)
def test_a_typo_in_any_point_is_found_before_anything_is_queued(sweep, grid, message):
    with pytest.raises(UserError, match=message):
        require_valid(sweep(grid=grid))


def test_a_set_that_contradicts_the_grid_is_refused(sweep):
    with pytest.raises(UserError, match=r"--set seed=3: seed is set by the sweep"):
        sweep("seed=3", grid={POWER: [0, 1]})


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_point_beyond_the_last(sweep, index):
    with pytest.raises(UserError, match=f"has no point {index}: its points are 0 to 1"):
        sweep(grid={POWER: [0, 1]}).point(index)


def test_the_error_for_an_unknown_sweep_lists_the_named_ones():
    with pytest.raises(UserError, match=r"did you mean 'schedules'\?\)\n  named sweeps: built_in, derivative_power, "):
        open_sweep("scedules")


@pytest.mark.parametrize("name", NAMED)
def test_every_point_of_the_named_sweeps_can_be_trained(name):
    opened = open_sweep(name)
    require_valid(opened)
    assert len({p.name for p in opened.points}) == len(opened.points) > 1


def test_the_cost_of_a_sweep_is_counted_once_per_setting_and_times_its_seeds(sweep):
    costs = describe_sweep(sweep(*SMALL, grid={"training.max_steps": [5, 10]}, seeds=[0, 1, 2]))
    assert [[p.index for p in cost.points] for cost in costs] == [[0, 1, 2], [3, 4, 5]]
    assert costs[0].gpu_hours == 3 * costs[0].report.gpu_hours > 0
    assert costs[1].gpu_hours == pytest.approx(2 * costs[0].gpu_hours, rel=0.01)


def test_points_can_be_listed_as_json(run, sweep):
    opened = sweep(grid={"optimizer.lr": [0.1, 0.2]})
    code, out, err = run("sweep", "list", str(opened.path), "--json", "--out-root", "elsewhere")
    assert code == 0, err
    assert json.loads(out)[1] == {
        "index": 1,
        "folder": "elsewhere/lr=0.2-s0",
        "settings": {"optimizer.lr": 0.2, "seed": 0},
    }
    assert run("sweep", "folder", str(opened.path), "1", "--out-root", "elsewhere")[1] == "elsewhere/lr=0.2-s0\n"
    listed = run("sweep", "list", str(opened.path))[1]
    assert [line.split() for line in listed.splitlines()] == [
        ["index", "lr", "seed", "run", "folder"],
        ["0", "0.1", "0", "runs/mine/lr=0.1-s0"],
        ["1", "0.2", "0", "runs/mine/lr=0.2-s0"],
    ]


def test_the_cost_is_printed_with_its_sum(run, sweep):
    opened = sweep(grid={"optimizer.lr": [0.1, 0.2]}, seeds=[0, 1])
    code, out, err = run("sweep", "check", str(opened.path), *(part for text in SMALL for part in ("--set", text)))
    assert code == 0, err
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["0-1", "lr=0.1-s0", "2"],
        ["2-3", "lr=0.2-s0", "2"],
    ]
    assert out.splitlines()[-1].startswith("4 runs, ")


def test_a_point_is_trained_once_in_its_folder(sweep, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = sweep(grid={"training.max_steps": [2, 3]})
    sets = [part for text in TINY if not text.startswith("training.max_steps") for part in ("--set", text)]
    first, second = (run("sweep", "run", str(opened.path), "1", *sets, "--out-root", "points") for _ in range(2))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "validation at step 3" in first[1]
    assert "points/max_steps=3-s0 is finished" in second[1]
    assert sorted(losses(tmp_path / "points" / "max_steps=3-s0")) == [1, 2, 3]


def test_a_signal_ends_the_sweep_and_not_only_its_point(sweep, run, tmp_path, monkeypatch):
    """torchrun would take another exit code than 0 for a failure."""
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr(
        launch, "launch", lambda settings, resume, stop: begun.append(settings) or launch.EXIT_PREEMPTED
    )
    opened = sweep(grid={"optimizer.lr": [0.1, 0.2]})
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert run("sweep", "run", str(opened.path))[0] == 75
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert run("sweep", "run", str(opened.path))[:2] == (0, "")
    assert len(begun) == 2


def test_a_signal_at_the_end_of_a_point_ends_the_sweep(sweep, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    begun = []

    def launched(settings, resume, stop):
        begun.append(settings)
        if stop.requested:
            return launch.EXIT_PREEMPTED
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch.EXIT_DONE

    monkeypatch.setattr(launch, "launch", launched)
    assert run("sweep", "run", str(sweep(grid={"optimizer.lr": [0.1, 0.2, 0.3]}).path))[0] == 75
    assert len(begun) == 2


def test_a_point_that_diverges_does_not_end_the_sweep(sweep, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "write_report", lambda *_, **__: None)
    outcomes = [launch.EXIT_NON_FINITE, launch.EXIT_DONE]
    monkeypatch.setattr(launch, "launch", lambda settings, resume, stop: outcomes.pop(0))
    code, out, _ = run("sweep", "run", str(sweep(grid={"optimizer.lr": [0.1, 0.2]}).path))
    assert (code, outcomes) == (3, [])
    assert "report: " in out


def test_all_points_are_trained_and_compared_in_a_table_and_a_page(sweep, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = []
    monkeypatch.setattr(page, "write_report", lambda folders, path, **_: pages.append((folders, path)))
    opened = sweep(grid={"plugin": ["uniform_mdlm", "gpt_bert"], "training.max_steps": [2]})
    sets = [part for text in TINY if not text.startswith("training.max_steps") for part in ("--set", text)]
    code, out, err = run("sweep", "run", str(opened.path), *sets, "--out-root", "points")
    assert code == 0, err
    lines = out.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("run ") and "status" in line)
    names = ["plugin=uniform_mdlm-s0", "plugin=gpt_bert-s0"]
    assert [row.split()[0] for row in lines[heading + 1 : heading + 3]] == names
    assert lines[-1] == "report: points/report.html"
    assert pages == [([Path("points") / name for name in names], Path("points/report.html"))]
