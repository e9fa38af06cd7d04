"""Training losses and test accuracies of methods side by side on several tasks."""
