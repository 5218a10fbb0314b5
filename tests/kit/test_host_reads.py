"""What counts as waiting for the device, on tensors of a CPU."""

import pytest
import torch

from ltg_mdlm.testing.host_reads import HostRead, NoHostReads

WAITS = {
    "reads a value": lambda x, mask, index: float(x.sum()),
    "decides by a value": lambda x, mask, index: bool(x.sum() > 0),
    "counts non-zero elements": lambda x, mask, index: x.nonzero(),
    "makes a list": lambda x, mask, index: x.tolist(),
    "repeats by counts": lambda x, mask, index: torch.repeat_interleave(x[:2], index),
    "selects by a mask": lambda x, mask, index: x[mask],
    "assigns tensors by a mask": lambda x, mask, index: x.__setitem__(mask, torch.ones(2)),
    "assigns a number to one element": lambda x, mask, index: x.__setitem__(-1, 0),
    "assigns a number to one element of a matrix": lambda x, mask, index: x.view(2, 2).__setitem__((0, 1), 0.5),
    "assigns a number by indices": lambda x, mask, index: x.__setitem__(index, 0),
    "makes a tensor of a number on the device": lambda x, mask, index: torch.tensor(0.5, device=x.device),
    "makes a tensor of numbers on the device": lambda x, mask, index: torch.as_tensor([1, 2], device=x.device),
    "makes a tensor of a number like another": lambda x, mask, index: x.new_tensor(0.5),
}
DOES_NOT = {
    "assigns a number to a slice": lambda x, mask, index: x.__setitem__(slice(-1, None), 0),
    "assigns a number to a row": lambda x, mask, index: x.view(2, 2).__setitem__(1, 0),
    "assigns a number by a mask": lambda x, mask, index: x.__setitem__(mask, 0),
    "assigns an element of the device": lambda x, mask, index: x.__setitem__(-1, x[0]),
    "repeats by counts with a known sum": lambda x, mask, index: torch.repeat_interleave(x[:2], index, output_size=2),
    "selects by indices": lambda x, mask, index: x[index],
    "fills": lambda x, mask, index: x.fill_(3),
    "makes a constant": lambda x, mask, index: torch.full((), 0.5, device=x.device),
    "multiplies by a number": lambda x, mask, index: x * 0.5,
    "makes a tensor for the host": lambda x, mask, index: torch.tensor(0.5),
    "views a tensor": lambda x, mask, index: torch.as_tensor(x, device=x.device),
}


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(4.0), torch.tensor([True, False, True, False]), torch.tensor([0, 2])


@pytest.mark.parametrize("name", WAITS)
def test_code_that_waits_is_found(name):
    x, mask, index = operands()
    with pytest.raises(HostRead, match="waits for the device"), NoHostReads():
        WAITS[name](x, mask, index)


@pytest.mark.parametrize("name", DOES_NOT)
def test_code_that_does_not_wait_is_left_alone(name):
    x, mask, index = operands()
    with NoHostReads():
        DOES_NOT[name](x, mask, index)
