"""BibTeX entries of what runs implement."""

import re
import shutil
import subprocess

import pytest
import yaml
from support.fabricated import fabricate_run

from ltg_mdlm.host.discovery import find, installed_plugins
from ltg_mdlm.host.plugin_host import import_plugin
from ltg_mdlm.reporting.bibliography import MODEL, OPTIMIZERS, bibliography


def keys(entries: str) -> list[str]:
    return re.findall(r"@\w+{(\w+),", entries)


def test_selected_plugins_the_model_and_the_optimiser_are_cited_once(tmp_path, run):
    for seed in range(2):
        fabricate_run(tmp_path / "runs" / f"freq-s{seed}", "freq_mdlm", "optimizer.name=lamb", seed=seed)
    fabricate_run(tmp_path / "runs" / "dual", "dual", "optimizer.name=muon")
    code, _, err = run("report", str(tmp_path / "runs"), "--bibtex", str(tmp_path / "runs.bib"))
    assert (code, "note" in err) == (0, False), err
    assert sorted(keys((tmp_path / "runs.bib").read_text())) == [
        "jordan2024muon",
        "kosmopoulou2025masked",
        "liu2025muon",
        "loshchilov2019decoupled",
        "sahoo2024mdlm",
        "samuel2023trained",
        "samuel2025dual",
        "you2020large",
    ]


def test_the_default_plugin_is_not_cited_if_it_fills_no_slot(tmp_path):
    folder = fabricate_run(tmp_path / "run", "gpt_bert", "plugins.uniform_mdlm.schedule=cosine", "optimizer.name=lamb")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["provenance"] = {"masking": {"plugin": "gpt_bert"}, "objective": {"plugin": "gpt_bert"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert keys(bibliography([folder])[0]) == ["samuel2023trained", "charpentier2024gptbert", "you2020large"]


def test_plugins_without_known_publications_are_named(tmp_path, monkeypatch):
    folder = fabricate_run(tmp_path / "run", "freq_mdlm")
    monkeypatch.setattr(import_plugin(find("freq_mdlm")), "bibtex", "")
    text = (folder / "config.yaml").read_text().replace("uniform_mdlm:", "missing_one: {}\n  uniform_mdlm:", 1)
    (folder / "config.yaml").write_text(text)
    notes = bibliography([folder])[1]
    assert len(notes) == 2
    assert "missing_one" in notes[0]
    assert "freq_mdlm states no publication" in notes[1]


OURS = ("ltg-mdlm",)


@pytest.fixture(scope="module")
def all_entries() -> str:
    names = [name for name, found in installed_plugins().items() if found[0].distribution.startswith(OURS)]
    assert len(names) >= 9
    return "\n\n".join([MODEL, *dict.fromkeys(OPTIMIZERS.values()), *(import_plugin(find(n)).bibtex for n in names)])


def test_every_plugin_of_the_project_states_a_publication_with_its_arxiv_number_or_address(all_entries):
    entries = [entry for entry in re.split(r"(?m)^(?=@)", all_entries) if entry.strip()]
    for entry in entries:
        assert entry.count("{") == entry.count("}")
        assert {"author", "title", "year"} <= set(re.findall(r"(?m)^  (\w+) =", entry)), entry
        assert re.search(r"eprint = {\d{4}\.\d{5}}|howpublished = {https://", entry), entry


@pytest.mark.skipif(not shutil.which("bibtex"), reason="bibtex is not installed")
def test_bibtex_reads_all_entries(all_entries, tmp_path):
    unique = dict.fromkeys(entry.strip() for entry in re.split(r"(?m)^(?=@)", all_entries) if entry.strip())
    (tmp_path / "all.bib").write_text("\n\n".join(unique))
    (tmp_path / "paper.aux").write_text("\\citation{*}\n\\bibstyle{plain}\n\\bibdata{all}\n")
    done = subprocess.run(["bibtex", "paper"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Warning" in done.stdout) == (0, False), done.stdout
    assert 'R{\\"u}tte' in (tmp_path / "paper.bbl").read_text()
