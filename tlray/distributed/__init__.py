"""Ray, and nothing but Ray: the only folder that imports it."""
