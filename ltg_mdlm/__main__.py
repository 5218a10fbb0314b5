"""`python -m ltg_mdlm` is the command `ltg-mdlm`."""

from ltg_mdlm.cli.app import main

if __name__ == "__main__":
    main()
