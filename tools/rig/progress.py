"""What the person at the terminal sees; in a pipe only what must be said."""

import sys


class Progress:
    """One line that is rewritten while work goes on; silent when standard error is not a terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._what = ""
        self.prefix = ""

    def phase(self, what: str) -> None:
        self._what = what
        self._show(f"{self.prefix}{what}")

    def count(self, done: int, total: int) -> None:
        self._show(f"{self.prefix}{self._what}: {done}/{total}")

    def clear(self) -> None:
        self._show("")

    def loud(self, text: str) -> None:
        """A line that is printed in every case, terminal or not."""
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def _show(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r\033[K{text[:110]}")
            sys.stderr.flush()
