"""`python -m ltg_mdlm`, the same as `ltg-mdlm`."""

from ltg_mdlm.cli.app import main

if __name__ == "__main__":
    main()
