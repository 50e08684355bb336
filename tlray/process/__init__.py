"""This process: its end, its children, its temporary folders, its terminal."""
