"""What a person starts: a run, its resume and its end, a trial without Ray, the demo, a retraining."""
