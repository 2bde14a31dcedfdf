"""Networks that return clean estimates: each a `ScorePrior` of a process, a space and a model."""
