"""The binding to the native core: the only package that touches cffi."""
