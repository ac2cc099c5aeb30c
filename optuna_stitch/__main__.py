"""The command line as a module, for launchers: ``torchrun -m -- optuna_stitch build STUDY``."""

from optuna_stitch.cli.app import main

if __name__ == "__main__":
    main()
