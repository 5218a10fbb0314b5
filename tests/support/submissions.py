"""Small data of the strict tracks, and a checker of the collated file.

`accept` is written from the published description of the collated file, and knows nothing of the program.
"""

import csv
import json
import math
import random

from support.finetuning import write_task

CHECKPOINTS = [f"chck_{i}M" for i in range(1, 9)]
SMALL = [f"chck_{i}M" for i in [*range(1, 10), *range(10, 101, 10)]]
WORDS = ("dog", "cats", "tree")


def write_rows(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_data(root):
    """Every kind of data of the strict tracks, in few rows."""
    rng = random.Random(0)
    pairs = [{"sentence_good": f"the dog {i}", "sentence_bad": f"a the {i}"} for i in range(3)]
    for folder in ("full_eval/blimp_filtered", "fast_eval/blimp_fast"):
        for uid in ("Principle_A", "islands"):
            write_rows(root / folder / f"{uid}.jsonl", *({**pair, "UID": uid} for pair in pairs))
    for folder in ("full_eval/supplement_filtered", "fast_eval/supplement_fast"):
        write_rows(root / folder / "hypernym.jsonl", *pairs[:2])
    ewok = {
        "Context1": "the dog ran.",
        "Context2": "the cats ran.",
        "Target1": "a dog",
        "Target2": "a cat",
        "Domain": "d",
    }
    for folder in ("full_eval/ewok_filtered", "fast_eval/ewok_fast"):
        write_rows(root / folder / "d.jsonl", ewok, ewok | {"Context1": "a tree."})
    boxes = [{"input_prefix": "Box", "options": [" a dog", " a tree"], "numops": n} for n in (0, 1, 1)]
    nothing = {"input_prefix": "Box", "options": [" nothing", " a tree"], "numops": 0}
    write_rows(root / "full_eval/entity_tracking/regular.jsonl", *boxes, nothing)
    write_rows(root / "full_eval/entity_tracking/ambiref.jsonl", *boxes[:2])
    write_rows(root / "fast_eval/entity_tracking_fast/regular.jsonl", nothing, *boxes)
    comps = {"prefix_acceptable": "a dog", "prefix_unacceptable": "a tree", "property_phrase": "ran"}
    write_rows(root / "full_eval/comps/comps_base.jsonl", comps)
    write_rows(root / "full_eval/comps/comps_wugs_dist-before.jsonl", comps)
    for name, solutions in (("parallel", 4), ("nonparallel", 2)):
        rows = [
            {"prompt": "the", "label": i % solutions, "example_id": f"e{i}"}
            | {f"solution{j}": f"dog {j}" for j in range(solutions)}
            for i in range(3)
        ]
        for half in ("full_eval", "fast_eval"):
            write_rows(root / half / f"global_piqa_{name}" / "eng_latn.jsonl", *rows)
    columns = ["RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time"]
    columns += ["Subtlex_log10", "length", "context_length", "prev_length"]
    contexts = ["the", "the dog", "a cats saw", "it's the"]
    file = root / "full_eval/reading/reading_data.csv"
    file.parent.mkdir()
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["item", "word", "prev_item", "prev_word", *columns])
        for i in range(40):
            own, previous = f"{rng.choice(contexts)} {i}", rng.choice(contexts)
            before = ["None", ""] if i == 0 else [previous, rng.choice(WORDS)]
            writer.writerow([own, rng.choice(WORDS), *before, *(rng.uniform(1, 9) for _ in columns)])
    aoa = root / "full_eval/cdi_childes"
    aoa.mkdir()
    (aoa / "cdi_childes.json").write_text(json.dumps({w: [{"context": "a "}, {"context": "the "}] for w in WORDS}))
    with (aoa / "cdi_human.csv").open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["word", *range(16, 31)])
        for i, word in enumerate(WORDS):
            writer.writerow([word, *(1 / (1 + math.exp(20 + i - month)) for month in range(16, 31))])
    write_task(root / "full_eval/glue_filtered", "rte", train=8, valid=4)
    write_task(root / "full_eval/glue_filtered", "mrpc", train=8, valid=5)
    return root


def accept(submission, revisions):
    """The keys and numbers of predictions of the collated file, for the data of `write_data`."""
    keys = "blimp blimp_supplement ewok entity_tracking_filtered comps global_piqa_parallel global_piqa_nonparallel"
    assert set(submission) == {*keys.split(), "reading", "aoa_surprisals", "aoa", "glue", "fast_eval_results"}

    def counts(key):
        return {uid: len(entry["predictions"]) for uid, entry in submission[key].items()}

    assert counts("blimp") == {"Principle_A": 3, "islands": 3}
    assert counts("blimp_supplement") == {"hypernym": 2}
    assert counts("ewok") == {"d": 2}
    assert counts("entity_tracking_filtered") == {
        "regular_0_ops": 1,
        "regular_1_ops": 2,
        "ambiref_0_ops": 1,
        "ambiref_1_ops": 1,
    }
    assert counts("comps") == {"base": 1, "wugs_dist_before": 1}
    assert counts("global_piqa_parallel") == counts("global_piqa_nonparallel") == {"e0": 1, "e1": 1, "e2": 1}
    assert counts("reading") == {"reading": 40}
    assert all(row.keys() == {"id", "pred", "prev_pred"} for row in submission["reading"]["reading"]["predictions"])
    assert submission["ewok"]["d"]["predictions"][0]["pred"] in ("the dog ran. a dog", "the cats ran. a dog")
    assert counts("glue") == {"rte": 4, "mrpc": 5}
    assert submission["aoa"].keys() == {"aoa"}
    fast = submission["fast_eval_results"]
    assert set(fast) == {*keys.split(), "reading"} - {"comps"}
    for key, of_checkpoints in fast.items():
        assert len(of_checkpoints) == len(revisions)
        for revision, figures in zip(revisions, of_checkpoints, strict=True):
            assert (figures is None) == (revision not in CHECKPOINTS)
            if figures is not None and key != "reading":
                assert all(0 <= share <= 1 for share in figures.values())
    first = {key: set(of_checkpoints[0]) for key, of_checkpoints in fast.items()}
    assert first["reading"] == {"spr", "rt"}
    assert first["global_piqa_parallel"] == {"global_piqa_parallel"}
    assert first["entity_tracking_filtered"] == {"regular_0_ops", "regular_1_ops"}
    # Right answers of a fast task, counted from the predictions of the same rows in the full task.
    assert first["blimp"] == {"Principle_A", "islands"}
