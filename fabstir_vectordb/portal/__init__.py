"""A small S5 node over a local directory, for development, for tests, and to serve a store to other S5 clients.

Needs the extra ``portal``. The portal answers as nodes and gateways do in the S5 reference, but does not join the S5
network: it has no peers and no pins. Web pages of other origins cannot use it unless they are allowed (`guard`), so
that no page in a user's browser can reach a portal on the user's machine.
"""
