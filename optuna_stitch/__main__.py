"""The command line as a module, for launchers: ``torchrun -m -- optuna_stitch build STUDY``."""

from optuna_stitch.cli import main

main()
