"""What benchmarks/quality.py is made of: the sets, the cells that results are kept in, the comparison, the table."""
