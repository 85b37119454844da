"""Errors, processes, the mesh, signals, memory. Imports none of the other folders."""
