"""The files of a dataset folder that belong to a split."""

import pytest

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.dataset_splits import chosen_names, split_of_name
from ltg_mdlm.data.sources import find_sources


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation.csv", "validation"),
        ("dev/part1.jsonl", "validation"),
        ("childes.dev", "validation"),
        ("test/training.txt", "train"),
        ("constrain.txt", None),
        ("development.txt", None),
        ("zho_TEST.csv", "test"),
    ],
)
def test_names_say_the_split(name, split):
    assert split_of_name(name) == split


FILES = ["a.txt", "nl/train-0.csv", "nl/dev.csv", "zh/train.csv", "zh/deep/more.csv"]


def readme(configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{configs}---\n# A dataset"


@pytest.mark.parametrize(
    ("configs", "wanted", "expected"),
    [
        ("- config_name: default\n  data_files: '*.txt'\n", "", ["a.txt"]),
        ("- data_files: [nl/*.csv, a.txt]\n", "train", ["nl/dev.csv", "nl/train-0.csv", "a.txt"]),
        ("- data_dir: zh\n  data_files: '**/*.csv'\n", "", ["zh/deep/more.csv", "zh/train.csv"]),
        ("- data_files:\n    train: nl/train-[0-9].csv\n    validation: nl/dev.csv\n", "dev", ["nl/dev.csv"]),
        ("- config_name: x\n  data_files: a.txt\n- config_name: y\n  default: true\n  data_files: zh/*.csv\n",
         "x/train", ["a.txt"]),
        ("- {}\n", "validation", ["nl/dev.csv"]),
    ],
)  # fmt: skip
def test_a_readme_lists_configurations_and_splits(configs, wanted, expected):
    assert chosen_names(sorted(FILES), readme(configs), wanted, "train", "here") == expected


def test_a_folder_is_divided_only_if_all_names_say_a_split(tmp_path):
    for name in ("wiki.train", "wiki.dev", "talk.dev"):
        (tmp_path / name).write_text("a")

    def found(path: object, split: str = "train") -> list[str]:
        return [file.path.name for file in find_sources([str(path)], split)]

    assert found(tmp_path) == ["wiki.train"]
    assert found(tmp_path, "validation") == found(f"{tmp_path}:dev") == ["talk.dev", "wiki.dev"]
    with pytest.raises(UserError, match=r"no split 'test'\n  splits: .*train"):
        find_sources([f"{tmp_path}:test"])
    (tmp_path / "letters.txt").write_text("b")
    assert found(tmp_path) == ["letters.txt", "talk.dev", "wiki.dev", "wiki.train"]


def test_a_pattern_without_files_is_an_error():
    with pytest.raises(UserError, match=r"here/README.md: lists 'b/\*' for the split train, but there is no such file"):
        chosen_names(FILES, readme("- data_files: b/*\n"), "", "train", "here")
    with pytest.raises(UserError, match=r"here/README.md: its header is not YAML"):
        chosen_names(FILES, "---\n[\n---\n", "", "train", "here")


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ("  5\n", r"must be a list of configurations, .*, not 5"),
        ("- 5\n", r"must be a list of configurations, .*, not \[5\]"),
        (
            "- config_name: x\n  data_files: 5\n",
            r".*`data_files` a pattern of file names, a list of patterns, or a table",
        ),
        ("- data_files: {train: [[a.txt]]}\n", r".*a table of patterns by split, not \[{'data_files'"),
        ("- data_files: [{split: train}]\n", r".*a table of patterns by split, not"),
        ("- data_files: '[z-a]*.txt'\n", r".*'\[z-a\]\*.txt' is no pattern: bad character range z-a"),
        ("- data_files: 2001-99-99\n", r"is not valid YAML: .*'2001-99-99' is not a valid value of type timestamp"),
        ("- &a [*a]\n", r"is not valid YAML: .*the value of an anchor contains itself"),
    ],
)
def test_configurations_of_another_form_are_an_error_that_names_the_readme(configs, message):
    with pytest.raises(UserError, match=f"^here/README.md: `configs` in its header {message}"):
        chosen_names(FILES, readme(configs), "", "train", "here")


def test_other_entries_of_the_header_are_not_read():
    header = "---\ndate: 2001-99-99\nlicense: a\nlicense: b\n{}---\n"
    assert chosen_names(FILES, header.format(""), "", "train", "here") == FILES
    assert chosen_names(FILES, header.format("configs:\n- data_files: a.txt\n"), "", "train", "here") == ["a.txt"]
    assert chosen_names(FILES, header.format("configs:\n"), "", "train", "here") == FILES
