"""For all tests: none asserts how long something took, and the programs that they start heed SIGINT."""

import signal

from hypothesis import settings

# No test asserts a time, so an example may take as long as it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell ignores SIGINT for its background jobs, and what is ignored is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
