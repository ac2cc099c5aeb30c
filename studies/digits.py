"""Stitch two networks and search their supernetwork, in the lines that an Optuna user expects."""

import optuna

import optuna_stitch as st

data = st.load_data("sklearn/digits", train={"images": 500}, val={"images": 500})
a = st.load_parent("test_resnet", num_classes=10, input_size=32)  # or: pretrained=True
b = st.load_parent("test_efficientnet", num_classes=10, view=a.view)
st.train_parent(a, data.train, st.Recipe(epochs=6, learning_rate=4e-3, seed=1))
st.train_parent(b, data.train, st.Recipe(epochs=12, learning_rate=4e-3, seed=1))

supernetwork = st.stitch(a, b)
st.check_parents(supernetwork, data.val)  # stops where one of them only guesses
supernetwork.fit(data.train)

objective = st.Objective(supernetwork, data.val, metrics=["accuracy", "macs"])
study = st.create_study(
    objective,
    study_name="digits",
    storage="sqlite:///digits.db",
    load_if_exists=True,
    sampler=optuna.samplers.NSGAIISampler(population_size=50, seed=0),
)
st.optimize(study, objective, n_trials=100, batch=10)  # or: study.optimize(objective, ...)

best = max(study.best_trials, key=lambda trial: trial.values[0])
network = objective.subnetwork(best.params).extract()  # a plain nn.Module
print(f"trial {best.number}: {best.values[0]:.1%} at {best.values[1] / 1e6:.2f} M MACs")
