"""The checks, one module for each slot and stage; `ltg_mdlm.testing.checks.every.CHECKS` lists them in order."""
