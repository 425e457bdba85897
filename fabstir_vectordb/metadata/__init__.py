"""Metadata of rows: validated, kept as CBOR, decoded only for what is returned."""
