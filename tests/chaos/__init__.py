"""Disturbs runs of tlray at random and compares what comes of them with undisturbed ones.

    python -m tests.chaos --rounds 100 --seed 1          # every kind of disturbance, in a seeded order
    python -m tests.chaos --seed 1 --round 37            # one round again
    python -m tests.chaos --rounds 20 --kinds flip cut   # some kinds only

A round puts a run's files into the state of some moment, disturbs what goes on from there, gives the commands that a
user would give until the run is done, and compares leaderboard, exports and report with the reference. The states were
kept while the reference run was made, with all its processes halted: each is what a power cut leaves.
"""
