"""Exact laws, by enumeration, of the package's step functions and rewards on tabular policies."""
