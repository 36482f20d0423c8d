"""For all tests: no test asserts how long something took, so an example may take as long as it takes."""

import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell ignores SIGINT for its background jobs, and what is ignored is inherited by all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
