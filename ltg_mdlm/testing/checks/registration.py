"""What the host needs before anything runs: the entry point, options, descriptions."""

from __future__ import annotations

import inspect

from ltg_mdlm.errors import UserError
from ltg_mdlm.host import hooks_of, import_plugin, option_help
from ltg_mdlm.installed import find
from ltg_mdlm.testing.subject import PluginUnderTest, line_of
from ltg_mdlm.testing.verdict import check
from ltg_mdlm.testing.violation import NotApplicable, Violation

UNKNOWN = "no_such_option_of_any_plugin"


@check()
def it_is_found_by_its_entry_point_and_fills_what_it_registers(subject: PluginUnderTest) -> None:
    """The real metadata names it, its class imports, its hooks exist and return components."""
    where = f"plugin {subject.name!r}, entry-point group ltg_mdlm"
    try:
        subject.host().check_config()
        subject.components()
    except UserError as error:
        raise Violation(where, "a plugin that can be selected and built", str(error)) from error


found = it_is_found_by_its_entry_point_and_fills_what_it_registers


@check(found)
def an_unknown_option_is_refused(subject: PluginUnderTest) -> None:
    """A misspelt option is an error, not a setting that does nothing."""
    try:
        subject.host(f"plugins.{subject.name}.{UNKNOWN}=1")
    except UserError:
        return
    model = import_plugin(find(subject.name)).options_model
    where = f"{subject.label}: {model.__name__} ({line_of(model)})"
    raise Violation(
        where, f"an error for plugins.{subject.name}.{UNKNOWN}", "accepted; keep extra='forbid' of PluginOptions"
    )


@check(found)
def every_option_is_described(subject: PluginUnderTest) -> None:
    """`plugins show` has something to say about each."""
    model = import_plugin(find(subject.name)).options_model
    if not model.model_fields:
        raise NotApplicable(f"{subject.name} has no options")
    without = [option.name for option in option_help(model) if not option.description.strip()]
    if without:
        where = f"{subject.label}: {model.__name__} ({line_of(model)})"
        raise Violation(where, "Field(..., description=...) for every option", f"none for {', '.join(without)}")


@check(found)
def the_plugin_and_its_hooks_are_described(subject: PluginUnderTest) -> None:
    """A docstring says what the plugin is, and what each component does; a module of one idea needs only its own."""
    plugin_class = import_plugin(find(subject.name))
    where = f"{subject.label}: {plugin_class.__name__} ({line_of(plugin_class)})"
    if not _described(plugin_class):
        raise Violation(where, "a docstring of the class or its module", "none")
    for part in subject.own(subject.components()):
        hook = getattr(plugin_class, f"ltg_mdlm_{part.slot}", None)
        if not _described(type(part.component)) and not inspect.getdoc(hook):
            name = type(part.component).__name__
            raise Violation(part.where("__init__"), f"a docstring of {name}, its module, or the hook", "none")
    if not hooks_of(plugin_class):
        raise Violation(where, "at least one method marked @hookimpl", "none: the plugin does nothing")


def _described(owner: type) -> bool:
    """Whether a class, not only its base class, or its module has a docstring."""
    module = inspect.getmodule(owner)
    return bool((owner.__dict__.get("__doc__") or "").strip() or (module and (module.__doc__ or "").strip()))
