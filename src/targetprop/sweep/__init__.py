"""``targetprop sweep``: many runs of a configuration, by seeds and by settings that Optuna draws."""
