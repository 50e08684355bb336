"""What a network is: a backbone with its ordered blocks and weights, what of it is frozen, and where it is cut."""
