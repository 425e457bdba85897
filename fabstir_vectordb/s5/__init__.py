"""S5 identity and formats: pure functions over bytes, without I/O.

``cid`` identifiers, ``phrase`` and ``keys`` from a secret to keys, ``cipher`` the two blob encryptions,
``dirv1`` the root directory, ``registry`` signed pointers, ``cbor`` and ``compress`` the shared codecs.
Everything here reads what S5.js writes (generation A of S5: HTTP portals, 15-word phrases).
"""
