"""`ltg-mdlm watch`: the curves of running runs in a terminal, from their files alone."""
