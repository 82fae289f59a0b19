"""Adaptors into other tools, imported by those tools: nothing of segship itself needs what stands here."""
