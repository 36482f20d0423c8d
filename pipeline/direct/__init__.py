"""What the DirectRunner needs: a reader, a patched streaming runner, worker processes."""
