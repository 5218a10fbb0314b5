"""Fine-tuning on one task: rows and batches, learning, reproducibility and the published recipe."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import sentences, small_tokenizer
from support.finetuning import separable_rows, trained_model, write_rows
from torch.nn import functional as F

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, PAD, Tokenizer
from ltg_mdlm.evaluation import finetune_training as training
from ltg_mdlm.evaluation.finetune_tasks import FINETUNE_TASKS, Example, read_examples, settings_of
from ltg_mdlm.evaluation.finetune_training import (
    EncodedExamples,
    EncodedTask,
    Finetuning,
    SequenceClassifier,
    encode,
    finetune_once,
    micro_batches,
    trainable_copy,
    work_per_seed,
)
from ltg_mdlm.model.transformer import TimeEmbedding, Transformer
from ltg_mdlm.model.visibility import block_visibility

CPU = torch.device("cpu")
lengths = st.integers(0, 12)


def words(count: int) -> str:
    return " ".join(["dog"] * count)


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4), st.integers(8, 24))
def test_rows_are_those_of_the_tokenizers_pair_template_and_truncation(pairs, seq_len):
    """The library joins and cuts pairs itself, as the official pipeline has it do."""
    library = Tokenizer(small_tokenizer().definition).backend
    library.enable_truncation(seq_len, strategy="longest_first")
    texts = [(words(first), words(second)) for first, second in pairs]
    expected = [library.encode(*pair).ids for pair in texts]
    rows = encode([Example(*pair, 0) for pair in texts], small_tokenizer(), seq_len)
    assert rows.ids == expected


def test_rows_begin_each_text_with_bos_and_count_what_was_cut():
    tokenizer = small_tokenizer()
    first, second, long = "a dog ran", "the tree", " ".join(sentences(40))
    rows = encode([Example(first, second, 1), Example(first, long, 0)], tokenizer, 64)
    assert rows.ids[0] == [BOS, *tokenizer.encode(first), BOS, *tokenizer.encode(second)]
    assert rows.labels == [1, 0]
    assert rows.truncated == 1
    assert len(rows.ids[1]) == 64
    assert rows.ids[1][: len(tokenizer.encode(first)) + 2] == [BOS, *tokenizer.encode(first), BOS]


def rows_of_lengths(row_lengths: list[int]) -> EncodedExamples:
    ids = [[16 + row % 3] * length for row, length in enumerate(row_lengths)]
    return EncodedExamples(ids, [row % 2 for row in range(len(ids))], 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 60), st.data())
def test_micro_batches_hold_every_chosen_row_once_within_the_budget(row_lengths, budget, data):
    rows = rows_of_lengths(row_lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True))
    pooling = data.draw(st.sampled_from(["last", "first"]))
    batches = list(micro_batches(rows, chosen, budget, CPU, pooling))
    seen = [int(row) for batch in batches for row in batch.item_N]
    assert sorted(seen) == sorted(chosen)
    for batch in batches:
        assert batch.ids_BT.numel() <= budget or len(batch.item_N) == 1
        for ids_T, document_T, label, row in zip(*batch[:4], strict=True):
            length = len(rows.ids[row])
            padding = len(ids_T) - length
            left, right = (padding, 0) if pooling == "last" else (0, padding)
            assert ids_T.tolist() == [PAD] * left + rows.ids[row] + [PAD] * right
            assert document_T.tolist() == [-1] * left + [0] * length + [-1] * right
            assert label == rows.labels[row]


@pytest.mark.parametrize("budget", [1, 24, 1000])
def test_a_micro_batch_is_padded_to_its_own_longest_row_only(budget):
    rows = rows_of_lengths([3, 12, 4, 11])
    for batch in micro_batches(rows, range(4), budget, CPU, "last"):
        assert (batch.document_BT >= 0).sum(1).max() == batch.ids_BT.shape[1]


FAST = ("lr=3e-3", "batch_rows=8", "seq_len=64", "precision=fp32")


@pytest.fixture(scope="module")
def trained():
    return trained_model()


@pytest.fixture
def rows_of(tmp_path, trained):
    """The rows of a separable task."""

    def read(train: int, valid: int, task: str = "rte") -> EncodedTask:
        classes = FINETUNE_TASKS[task].classes
        splits = [
            encode(read_examples(file, FINETUNE_TASKS[task]), trained.tokenizer, 64)
            for file in (
                write_rows(tmp_path / f"{seed}.jsonl", separable_rows(count, task, len(classes), seed))
                for seed, count in enumerate((train, valid))
            )
        ]
        return EncodedTask(FINETUNE_TASKS[task], classes, *splits)

    return read


def settings(*sets: str, task: str = "rte"):
    return settings_of(FINETUNE_TASKS[task], [*FAST, *sets])


@pytest.mark.parametrize("task", ["rte", "mnli"])
@pytest.mark.parametrize(("cond_dim", "pooling"), [(None, "last"), (16, "last"), (None, "first")])
def test_a_separable_task_is_learnt(rows_of, task, cond_dim, pooling):
    wanted = settings("epochs=5", f"pooling={pooling}")
    run = finetune_once(trained_model(cond_dim=cond_dim), rows_of(64, 32, task), wanted, seed=42)
    assert run.best_epoch.metrics["accuracy"] > 0.9
    assert run.epochs[-1].loss < 0.5 * run.epochs[0].loss


def test_a_seed_repeats_itself_and_another_one_differs(trained, rows_of):
    rows = rows_of(24, 8)
    wanted = settings("epochs=2", "dropout=0.1", "lr=1e-4")
    first, again, other = (finetune_once(trained, rows, wanted, seed) for seed in (1, 1, 2))
    assert first.epochs == again.epochs
    assert first.epochs[0].loss != other.epochs[0].loss


def test_the_progress_of_all_epochs_adds_up_to_the_work(trained, rows_of):
    """24 of 27 rows are trained on in 3 steps of 8, each counts three times; 5 rows are evaluated."""
    done: list[int] = []
    rows, wanted = rows_of(27, 5), settings("epochs=2", "batch_rows=8")
    finetune_once(trained, rows, wanted, 0, advance=done.append)
    assert sum(done) == work_per_seed(rows, wanted) == 2 * (3 * 24 + 5)


def test_the_trained_model_stays_as_it_was(trained, rows_of):
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    finetune_once(trained, rows_of(16, 4), settings("epochs=1", "dropout=0.3"), seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in trained.model.parameters())
    assert not trained.model.training
    assert trained.model.config.hidden_dropout_prob == 0


def test_the_best_epoch_is_the_first_with_the_highest_metric_that_the_task_is_selected_by(
    trained, rows_of, monkeypatch
):
    """Accuracy would choose the second epoch, F1 the third."""
    told = iter([{"accuracy": 0.6, "f1": 0.5}, {"accuracy": 0.8, "f1": 0.6}, {"accuracy": 0.7, "f1": 0.9}] * 2)
    monkeypatch.setattr(training, "scores", lambda *_: next(told))
    rows = rows_of(8, 4, "mrpc")
    assert finetune_once(trained, rows, settings("epochs=3", task="mrpc"), seed=0).best == 2
    assert finetune_once(trained, replace(rows, task=FINETUNE_TASKS["rte"]), settings("epochs=3"), seed=0).best == 1
    monkeypatch.setattr(training, "scores", lambda *_: {"accuracy": 0.5})
    assert finetune_once(trained, replace(rows, task=FINETUNE_TASKS["rte"]), settings("epochs=3"), seed=0).best == 0


def test_the_first_update_is_that_of_torchs_adamw_on_the_mean_loss_of_the_batch(trained, rows_of):
    """Weight decay on every parameter; micro-batches change nothing; the vocabulary head is not trained."""
    rows, wanted = rows_of(8, 4), settings("weight_decay=0.3", "warmup=0", "epochs=4")
    ours = Finetuning(trained, rows, wanted, seed=3)
    ours._budget = 20
    literal = Finetuning(trained, rows, wanted, seed=3)._classifier
    vocabulary_head = [p for name, p in literal.named_parameters() if name.startswith("encoder.classifier.")]
    trainable = [p for p in literal.parameters() if all(p is not head for head in vocabulary_head)]
    (whole,) = micro_batches(rows.train, range(8), 10_000, CPU, "last")
    optimizer = torch.optim.AdamW(trainable, lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    literal.head.eval()  # its dropout would differ between batches
    ours._classifier.head.eval()
    loss = F.cross_entropy(literal(whole.ids_BT, whole.document_BT, torch.zeros(8)), whole.label_N)
    loss.backward()
    optimizer.step()
    assert float(ours._step(list(range(8)))) / 8 == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in ours._classifier.named_parameters():
        expected = dict(literal.named_parameters())[name]
        # the first step of Adam is lr * sign(gradient): tiny gradients may differ in sign
        assert torch.isclose(parameter, expected, atol=1e-5).float().mean() > 0.99, name


def test_the_learning_rate_warms_up_and_falls_on_a_cosine_to_its_final_factor(trained, rows_of, monkeypatch):
    run = Finetuning(trained, rows_of(80, 4), settings("epochs=10", "lr=1", "warmup=0.1"), seed=0)
    rates = []
    monkeypatch.setattr(run._optimizer, "step", lambda lr, ok: rates.append(lr))
    for epoch in range(10):
        run.epoch(epoch, lambda amount: None)
    expected = [(s + 1) / 10 for s in range(10)]
    expected += [0.1 + 0.9 * (1 + math.cos(math.pi * s / 90)) / 2 for s in range(90)]
    assert rates == pytest.approx(expected)


def test_every_epoch_has_another_order_and_leaves_out_what_does_not_fill_a_step(trained, rows_of):
    run = Finetuning(trained, rows_of(27, 4), settings(), seed=0)
    epochs = [[row for batch in run._batches(epoch) for row in batch] for epoch in range(4)]
    assert all(len(set(rows)) == 24 for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4
    assert set(np.concatenate(epochs)) == set(range(27))


def test_fewer_rows_than_a_batch_are_one_step(trained, rows_of):
    run = Finetuning(trained, rows_of(5, 4), settings(), seed=0)
    assert [sorted(batch) for batch in run._batches(0)] == [[0, 1, 2, 3, 4]]


def test_predictions_are_those_of_each_row_alone_with_dropout_off(trained, rows_of):
    rows = rows_of(64, 20)
    run = Finetuning(trained, rows, settings("dropout=0.2", "head_dropout=0.5", "epochs=2"), seed=0)
    predicted = [run.epoch(number, lambda amount: None).predictions for number in range(2)][-1]
    classifier = run._classifier
    alone = [
        classifier(torch.tensor([ids]), torch.zeros(1, len(ids)), torch.zeros(1)).argmax() for ids in rows.valid.ids
    ]
    assert predicted == [int(label) for label in alone]
    assert len(set(predicted)) == 2, "all of one class: nothing was compared"


@pytest.mark.parametrize(("pooling", "position"), [("last", 6), ("first", 0)])
def test_the_head_is_that_of_the_official_suite_on_the_last_or_first_position(pooling, position):
    model = trained_model(cond_dim=None).model
    torch.manual_seed(0)
    classifier = SequenceClassifier(model, 3, 0.0, pooling=pooling).eval()
    ids_BT = torch.randint(16, 100, (2, 7))
    document_BT = torch.zeros(2, 7)
    first_BD = model(ids_BT)[:, position]
    _, inner, _, _, _, outer = classifier.head
    normal = (first_BD - first_BD.mean(-1, keepdim=True)) / (
        first_BD.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    features = F.gelu(normal @ inner.weight.T + inner.bias)
    features = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(classifier(ids_BT, document_BT, None), features @ outer.weight.T + outer.bias)


@pytest.mark.parametrize("pooling", ["last", "first"])
def test_models_in_blocks_are_tuned_as_exported_models_are(pooling):
    """`AutoModel` applies the blocks; the classifier of transformers, which reads the first position, does not."""
    model = trained_model(cond_dim=None).model
    ids_BT, document_BT = torch.randint(16, 100, (2, 7)), torch.zeros(2, 7)
    document_BT[1, :2] = -1
    torch.manual_seed(0)
    classifier = SequenceClassifier(model, 3, 0.0, pooling=pooling, block_length=2).eval()
    visibility = block_visibility(document_BT, 2) if pooling == "last" else None
    hidden_BTD = model(ids_BT, document_BT, visibility=visibility)
    expected = classifier.head(hidden_BTD[:, -1 if pooling == "last" else 0])
    torch.testing.assert_close(classifier(ids_BT, document_BT, None), expected)


def test_padding_on_the_left_is_that_of_the_official_case():
    """A batch of two pairs; the second one is shorter, and the token before the end of its row is pooled."""
    tokenizer = small_tokenizer()
    pairs = [("The dog runs.", "It is a very big dog that runs in the park."), ("A cat.", "No.")]
    rows = encode([Example(*pair, 0) for pair in pairs], tokenizer, 512)
    (batch,) = micro_batches(rows, range(2), 10_000, CPU, "last")
    shorter = batch.item_N.tolist().index(1)
    ids = [BOS, *tokenizer.encode("A cat."), BOS, *tokenizer.encode("No.")]
    assert batch.ids_BT[shorter].tolist() == [PAD] * (batch.ids_BT.shape[1] - len(ids)) + ids
    assert batch.ids_BT[shorter, -1] == tokenizer.encode("No.")[-1]


def test_the_rate_of_the_multilingual_track_falls_on_a_line_to_zero(trained, rows_of, monkeypatch):
    run = Finetuning(trained, rows_of(16, 4), settings("epochs=5", "lr=1", "warmup=0", "schedule=linear"), seed=0)
    rates = []
    monkeypatch.setattr(run._optimizer, "step", lambda lr, ok: rates.append(lr))
    for epoch in range(5):
        run.epoch(epoch, lambda amount: None)
    assert rates == pytest.approx([1 - step / 10 for step in range(10)])
    assert [training.linear_factor(step, 10, 0.2) for step in range(10)] == pytest.approx(
        [0.5, 1, *(1 - step / 8 for step in range(8))]
    )


@pytest.mark.parametrize(
    ("accuracies", "last"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.6, 0.9], 4),  # three epochs without an improvement
        ([0.5, 0.5005, 0.501, 0.5015, 0.9], 3),  # improvements by 0.0005 do not count, but raise the mark
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.7], 5),
    ],
)
def test_training_ends_after_epochs_without_improvement_and_the_last_epoch_counts(
    trained, rows_of, monkeypatch, accuracies, last
):
    told = iter([{"accuracy": accuracy} for accuracy in accuracies])
    monkeypatch.setattr(training, "scores", lambda *_: next(told))
    wanted = settings(f"epochs={len(accuracies)}", "patience=3", "keep=last")
    run = finetune_once(trained, rows_of(8, 4), wanted, seed=0)
    assert (run.best, len(run.epochs)) == (last, last + 1)


def test_a_single_text_is_cut_at_its_end():
    tokenizer = small_tokenizer()
    long = " ".join(sentences(10))
    rows = encode([Example("a dog ran", None, 0), Example(long, None, 1)], tokenizer, 16)
    assert rows.ids == [[BOS, *tokenizer.encode("a dog ran")], [BOS, *tokenizer.encode(long)[:15]]]
    assert rows.truncated == 1


class DoubledTime(TimeEmbedding):
    """A plugin's own embedding of time."""

    def forward(self, conditioning_B):
        return 2 * super().forward(conditioning_B)


def test_a_copy_computes_the_same_with_a_plugins_own_time_embedding_and_dropout_of_its_own():
    config = trained_model().model.config
    torch.manual_seed(0)
    model = Transformer(config, DoubledTime(config.cond_dim)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.transformer.adaLN_modulations[0].weight)
    copied = trainable_copy(model, 0.5)
    ids_BT, conditioning_B = torch.randint(16, 100, (2, 9)), torch.tensor([0.1, 0.7])
    torch.testing.assert_close(
        copied.eval()(ids_BT, conditioning_B=conditioning_B), model(ids_BT, conditioning_B=conditioning_B)
    )
    copied.train()
    assert not torch.equal(copied(ids_BT, conditioning_B=conditioning_B), copied(ids_BT, conditioning_B=conditioning_B))
    trainable = {name for name, parameter in copied.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in copied.named_parameters() if not name.startswith("classifier.")}


def test_a_divergence_ends_with_a_message(trained, rows_of):
    with pytest.raises(
        UserError, match=r"rte, seed 7: \d+ updates of epoch 1 were not finite; try a lower lr than 1e\+30"
    ):
        finetune_once(trained, rows_of(24, 4), settings("lr=1e30", "warmup=0", "epochs=1"), seed=7)


def test_bf16_trains_close_to_float32(trained, rows_of):
    rows = rows_of(16, 4)
    losses = [
        finetune_once(trained, rows, settings("epochs=1", "lr=1e-4", "head_dropout=0", f"precision={name}"), 0)
        .epochs[0]
        .loss
        for name in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
