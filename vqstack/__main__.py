"""The program ``vqstack``, also ``python -m vqstack``, which ``accelerate launch -m vqstack`` starts several times."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports below; commands have handlers of their own

from vqstack.commands import main  # noqa: E402

if __name__ == "__main__":
    main()
