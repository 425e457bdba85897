"""An agent's memory: ``notes`` is what a memory holds, ``memory`` the memory itself, which knows no protocol."""
