"""The one exception that means: the user asked for something that cannot be done."""


class InputError(Exception):
    """Wrong input. The message is one line that names the input and the remedy.

    Commands print it as ``error: MESSAGE`` on standard error and leave with exit code 2; nothing has been written.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
