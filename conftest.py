"""What holds for every test of the workspace."""

import signal
import threading

# Tests interrupt what they start. A shell that runs the whole in the background has SIGINT ignored, and what is
# ignored stays so in every child (signal(7)).
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
