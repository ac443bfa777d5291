"""``python -m lightning_optim`` is ``lightning-optim``."""

from lightning_optim.cli.main import main

if __name__ == "__main__":
    main()
