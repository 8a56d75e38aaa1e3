"""The flow of a run: which model was the best, when to stop, and settings that change from round to round."""
