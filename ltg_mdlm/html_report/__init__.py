"""`ltg-mdlm report --out`: runs as one self-contained page, which needs neither a network nor a script to be read."""
