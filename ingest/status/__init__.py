"""The pipeline's status: what its job reports, the verdict, and the call that returns it."""
