"""Two deceptive objectives, in which groups of four parameters must change together."""

import optuna
import optunahub


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Traps and inverse traps: a group is worth most all on, or all off, and misleads between."""
    bits = [trial.suggest_categorical(f"x{i}", [0, 1]) for i in range(24)]
    blocks = [sum(bits[start::6]) for start in range(6)]
    ones = sum(4 if on == 4 else 3 - on for on in blocks)
    zeros = sum(4 if on == 0 else on - 1 for on in blocks)
    return ones, zeros


if __name__ == "__main__":
    module = optunahub.load_module("samplers/linkage")
    sampler = module.LinkageSampler(seed=0)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    study.optimize(objective, n_trials=1000)
    print(sorted({tuple(trial.values) for trial in study.best_trials}))
