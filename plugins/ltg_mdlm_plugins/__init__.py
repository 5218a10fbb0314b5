"""The built-in plugins: masked diffusion, frequency-informed masked diffusion, and the GPT-BERT hybrid.

The host finds them through entry points, like all other plugins.
"""
