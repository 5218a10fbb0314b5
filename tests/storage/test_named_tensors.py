"""Named tensors: restored in place, all or nothing, with an error that lists what does not fit."""

import pytest
import torch

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage.named_tensors import copy_named, folded


def test_values_are_copied_into_the_existing_tensors():
    target = {"a": torch.zeros(2), "b": torch.zeros((), requires_grad=True)}
    memory = {name: t.data_ptr() for name, t in target.items()}
    copy_named(target, {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(3.0)}, "the weights")
    assert target["a"].tolist() == [1, 2]
    assert float(target["b"].detach()) == 3
    assert {name: t.data_ptr() for name, t in target.items()} == memory


def test_nothing_is_copied_if_anything_does_not_fit():
    target = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    with pytest.raises(UserError) as error:
        copy_named(target, {"a": torch.ones(2), "b": torch.ones(3), "d": torch.ones(1)}, "the weights of run 1")
    assert str(error.value).splitlines() == [
        "cannot restore the weights of run 1: it was made with other settings",
        "  missing (1): c",
        "  not expected (1): d",
        "  of another shape (1): b [3] instead of [2]",
    ]
    assert all(not t.any() for t in target.values())


def test_long_lists_are_cut():
    with pytest.raises(UserError, match=r"missing \(20\): w00, w01, w02, w03, w04, w05, w06, w07, and 12 more$"):
        copy_named({f"w{i:02}": torch.zeros(1) for i in range(20)}, {}, "the weights")


def test_names_that_differ_in_their_first_number_are_listed_once():
    names = [*(f"layers.{layer}.heads.0" for layer in (0, 1, 2, 10, 11)), "layers.4.bias", "head", "a.3", "a.1", "a.2"]
    assert folded(names) == "layers.{0,1,2,10,11}.heads.0 (5), layers.4.bias, head, a.{1-3} (3)"
