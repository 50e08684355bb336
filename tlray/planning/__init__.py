"""All that is said before anything is spent: the plan, what was measured for it, what a trial needs."""
