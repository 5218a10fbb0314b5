"""Settings that are odd, damaged or hostile: one message that says what is wrong and where, and never another error."""

import codecs
import math
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings, parse_yaml, read_yaml, validate
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.training.sweep import open_sweep

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)

INVALID = {
    "seed: 2030-13-45": "'2030-13-45' is not a valid value of type timestamp",
    "seed: 0b_": "'0b_' is not a valid value of type int",
    "seed: !!int many": "'many' is not a valid value of type int",
    "seed: !!float many": "'many' is not a valid value of type float",
    "seed: !!bool perhaps": "'perhaps' is not a valid value of type bool",
    "name: !!timestamp noon": "'noon' is not a valid value of type timestamp",
    "seed: " + "7" * 5000: "a number of 5000 characters",
    "seed: 0x" + "f" * 5000: "a number of 5002 characters",
    "name: !secret x": "unknown tag !secret",
    "name: !!python/object/apply:os.getcwd []": "unknown tag python/object/apply:os.getcwd",
    "name: =": "'=' must be quoted",
    "model: &m {dropout: *m}": "contains itself",
    'name: "a\\0b"': "NUL",
    "name: a\0b": "character U+0000",
    "\tname: x": "cannot start any token",
    "name: " + "[" * 200 + "]" * 200: "more than 50 nested levels",
    "name: " + "[" * 100_000: "nest",
    "? [a]\n: 1": "unhashable key",
    BOMB: "more than 100,000 values",
}


@pytest.mark.parametrize(("text", "reason"), INVALID.items(), ids=[text[:30] for text in INVALID])
def test_invalid_yaml_is_reported_with_file_and_line(text, reason, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"# a comment\n{text}", encoding="utf-8")
    for read in (lambda: load_settings([str(path)]), lambda: open_sweep(str(path)), lambda: read_yaml(path)):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert f"{path} is not valid YAML: " in message
        assert reason in message
        assert len(message) < 1000
        assert "line 2" in message or text == BOMB or "nest" in reason


def test_the_pure_python_loader_of_yaml_reports_the_same(monkeypatch):
    """PyYAML has no libyaml on some machines."""

    class Slow(yaml.SafeLoader):
        construct_object = parse_yaml.__globals__["_Loader"].construct_object

    monkeypatch.setattr("ltg_mdlm.core.settings._Loader", Slow)
    for text in [*(text for text in INVALID if len(text) < 10_000), 'name: "\\ud800"']:
        with pytest.raises(UserError):
            parse_yaml(text)


def test_a_key_that_occurs_twice_names_both_lines(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("optimizer:\n  lr: 0.1\n  clip: 1\n  lr: 0.2\n")
    with pytest.raises(UserError, match=r"twice\.yaml is not valid YAML: line 4: 'lr' is already set in line 2"):
        load_settings([str(path)])


def test_anchors_and_merge_keys_may_be_used():
    text = "base: &base {lr: 0.1, clip: 1}\nfirst: {<<: *base, lr: 0.2}\nsecond: *base\n"
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"seed: 1\nname: caf\xe9\n", "not UTF-8 text: line 2: byte 0xe9"),
        ("seed: 1\n".encode("utf-16"), "UTF-16"),
        (b"seed: 1\n" + b"#" * 10_000_000, "10 MB"),
        (b"\0" * 100, "U+0000"),
    ],
)
def test_a_file_that_is_not_text_is_reported(data, reason, tmp_path: Path):
    path = tmp_path / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"bytes\.yaml") as error:
        load_settings([str(path)])
    assert reason in str(error.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path):
    path = tmp_path / "mark.yaml"
    path.write_bytes(codecs.BOM_UTF8 + b"seed: 4\n")
    assert load_settings([str(path)]).config.seed == 4


def test_a_folder_is_no_config(tmp_path: Path):
    with pytest.raises(UserError, match="it is a folder"):
        load_settings([str(tmp_path)])


def test_a_mistake_in_a_file_names_its_line(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\noptimizer:\n  lr: fast\n")
    with pytest.raises(UserError, match=r"(?s)optimizer\.lr.*set in .*mine\.yaml, line 3"):
        load_settings([str(path)])


def numbers(model=RunConfig, prefix=""):
    """Dotted key and types of every setting that is a number."""
    for name, field in model.model_fields.items():
        inner = next((t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if t), None)
        if hasattr(inner, "model_fields"):
            yield from numbers(inner, f"{prefix}{name}.")
        elif {int, float} & {field.annotation, *getattr(field.annotation, "__args__", ())}:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("key", list(numbers()))
def test_no_number_is_true_or_nan_or_minus_infinity(key):
    for value in ("true", ".nan", "-.inf"):
        with pytest.raises(UserError, match=key):
            load_settings((), [f"{key}={value}"])
    if key != "optimizer.clip":
        with pytest.raises(UserError, match=key):
            load_settings((), [f"{key}=.inf"])


def test_an_infinite_clip_means_no_clipping(tmp_path: Path):
    config = load_settings((), ["optimizer.clip=.inf"]).config
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_settings([str(path)]).config.optimizer.clip == math.inf


@pytest.mark.parametrize(
    "text",
    ["training.threads=1000000", "training.epochs=1e18", "training.max_steps=10000000000", "model.hidden_size=99999999",
     "training.global_batch_rows=1000000000000", "validation.draws=1000000"],
)  # fmt: skip
def test_numbers_that_no_machine_can_serve_are_refused(text):
    with pytest.raises(UserError, match="less than or equal to"):
        load_settings((), [text])


def test_true_is_no_number_in_the_options_of_plugins():
    chosen = load_settings((), ["plugins.freq_mdlm.power=true"])
    with pytest.raises(UserError, match=r"(?s)plugins\.freq_mdlm\.power: must be a number, not true.*--set"):
        Host(chosen.config, chosen.sources)


def test_text_that_no_file_can_hold_is_refused():
    for values, reason in (({"run": {"out": "x\udcff"}}, "UTF-8|unicode"), ({"data": {"corpus": "a\0b"}}, "NUL")):
        with pytest.raises(UserError, match=reason):
            validate(RunConfig, values, {})


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\tb", "x" * 300, "é" * 150])
def test_a_name_cannot_lead_out_of_the_folder_of_runs(name):
    with pytest.raises(UserError, match="name:"):
        load_settings((), [f'name="{name}"'])
    assert load_settings((), [f'name="{name}"'], out=Path("elsewhere")).config.run_folder() == Path("elsewhere")


@given(text=st.text() | st.lists(st.sampled_from(list("ab&*!:{}[],-'\"<=_0x1.e\n ")), max_size=30).map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_refused(text):
    for read in (
        lambda: parse_yaml(text),
        lambda: load_settings((), [text]),
        lambda: load_settings((), [f"name={text}"]),
        lambda: load_settings((), [f"plugins.{text}"]),
        lambda: load_settings((), [f"training={text}"]),
    ):
        with suppress(UserError):
            read()


@given(data=st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    for read in (lambda: load_settings([str(path)]), lambda: open_sweep(str(path))):
        with suppress(UserError):
            read()


def test_a_rule_about_several_options_says_where_each_of_them_was_set(tmp_path):
    file = tmp_path / "exact.yaml"
    file.write_text("plugins: {freq_mdlm: {weighting: exact}}\n")
    loaded = load_settings([str(file)], ["plugins.freq_mdlm.statistics=maskable"])
    with pytest.raises(UserError) as error:
        Host(loaded.config, loaded.sources)
    first, *places = str(error.value).splitlines()
    assert first.startswith("plugins.freq_mdlm: weighting: exact needs statistics: corpus")
    assert places == [
        "  plugins.freq_mdlm.statistics is set on the command line: --set plugins.freq_mdlm.statistics=maskable",
        f"  plugins.freq_mdlm.weighting is set in {file}, line 1",
    ]


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            "optimizer: muon",
            ["optimizer.lr=0.01"],
            r"optimizer: expected a section of settings, not 'muon'\n  set in .*, line 1",
        ),
        ("plugins: [freq_mdlm]", ["plugins.dual.share=0.5"], r"plugins: .*, not \['freq_mdlm'\]"),
        ("model:\n  # hidden_size: 64\n", ["model.dropout=0"], "model: .*, not None"),
    ],
)
def test_what_is_not_a_section_is_not_replaced_by_a_later_one(tmp_path, text, sets, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings([str(tmp_path / "mine.yaml")], sets)
