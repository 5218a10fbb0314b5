"""Pictures of a recipe's parts; matplotlib is needed only here (`pip install "ltg-mdlm[plots]"`)."""
