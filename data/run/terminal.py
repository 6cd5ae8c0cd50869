"""What is printed cannot steer or break the terminal, and what is typed cannot break the reader."""

import io
import sys


class _Shown(io.TextIOWrapper):
    """A stream that shows control characters and marks of direction instead of obeying them.

    Models, people and files write what is printed; none of them may steer the terminal.
    """

    OBEYED = [*range(32), *range(127, 160), 0x61c, 0x200e, 0x200f, *range(0x202a, 0x202f),
              *range(0x2066, 0x206a)]
    TABLE = {n: ascii(chr(n))[1:-1] for n in OBEYED if chr(n) not in "\n\t"}

    def write(self, text):
        return super().write(text.translate(self.TABLE))


def shown(stream):
    """The same stream, but what is written to it cannot steer the terminal."""
    if stream is None:  # it was closed
        return None
    stream.flush()
    new = _Shown(stream.buffer, stream.encoding, "backslashreplace",
                 line_buffering=stream.line_buffering)
    new.replaced = stream  # which would close the buffer that they share if it were forgotten
    return new


def careful_streams():
    """From now on nothing that is printed breaks the terminal, and nothing typed breaks the reader.

    What a terminal cannot show is escaped; half a character that is typed becomes a question mark.
    """
    sys.stdout, sys.stderr = shown(sys.stdout), shown(sys.stderr)
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="replace")
