# Holds no code: it lets tools that resolve relative imports by folder see the arrows between the rooms.
