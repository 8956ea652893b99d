"""The commands: generated from the methods' own signatures, listed from the catalog, nothing heavy until one runs."""
