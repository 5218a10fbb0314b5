from ltg_mdlm_plugins.uniform_mdlm import UniformMasking

from ltg_mdlm.api import Plugin, hookimpl


class Undescribed(Plugin):
    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return UniformMasking(ctx.mask_id)
