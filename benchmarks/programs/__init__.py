"""The programs that `benchmarks.sweep_vs_recipe` compares; each reads its work and prints its rows as the last line."""
