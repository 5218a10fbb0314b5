"""Pictures of the noise schedule and masking of every recipe, drawn from its settings like `plugins show --plot`."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.settings import read_yaml, stored_config
from ltg_mdlm.reporting.figure import STYLE, Panel, draw_panel
from ltg_mdlm.reporting.html_report.run_groups import Group, said

_DECIDING = ("plugins", "slots", "data.")
"""Settings on which the pictures depend."""


_SIZE = (4.3, 3.1)


ROWS = 256
"""Rows of the corpus on which masking is measured."""


@dataclass(frozen=True)
class Picture:
    """A drawn panel."""

    panel: Panel
    address: str
    """An SVG file as a data URL. The page's style sheet inverts its lightness in dark mode."""


@dataclass(frozen=True)
class RecipePictures:
    """The pictures of all groups with the same schedule and masking."""

    groups: Sequence[Group]
    pictures: Sequence[Picture]
    problem: str = ""
    """Why there are no pictures."""


def recipe_pictures(groups: Sequence[Group], most: int) -> tuple[list[RecipePictures], int]:
    """Pictures of the first `most` recipes, and the number of other recipes."""
    import torch

    alike: dict[str, list[Group]] = {}
    for group in groups:
        deciding = {key: value for key, value in group.settings.items() if key.startswith(_DECIDING)}
        if deciding:
            alike.setdefault(repr(sorted(deciding.items(), key=lambda item: item[0])), []).append(group)
    recipes, threads = list(alike.values()), torch.get_num_threads()
    # The tensors are small: several threads take longer than one, and many times longer on a machine that is busy.
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return [_pictures_of(recipe) for recipe in recipes[:most]], max(len(recipes) - most, 0)
    finally:
        torch.set_num_threads(threads)


def _pictures_of(groups: Sequence[Group]) -> RecipePictures:
    run = groups[0].runs[0]
    file = run.row.folder / "config.yaml"
    try:
        config = stored_config(read_yaml(file), file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            panels = _panels(config)
            return RecipePictures(groups, [_drawn(panel) for panel in panels])
    except Exception as error:  # third-party plugins run here, perhaps in another version than in training
        return RecipePictures(groups, [], said(error))


def _panels(config: RunConfig) -> list[Panel]:
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.host.plugin_host import Host
    from ltg_mdlm.host.run_context import batch_schedule, components_of, open_corpus
    from ltg_mdlm.reporting.plugin_pictures import last_step, measured_masking, schedule_panels

    corpus = open_corpus(config)
    host = Host(config)
    schedule = batch_schedule(host.config, corpus)
    components = components_of(host, corpus, schedule, Ranks.alone())
    end = last_step(host.config, schedule, ROWS)
    return [*schedule_panels(components.noise_schedule), *measured_masking(components, host.config, corpus, end)]


def _drawn(panel: Panel) -> Picture:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with mpl.rc_context({**STYLE, "savefig.dpi": 110, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=_SIZE)
        # Several times faster than an automatic layout.
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.16, right=0.97, top=0.97, bottom=0.16)
        draw_panel(panel, axes)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Picture(panel, f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}")
