"""Text to token shards: the first room. Imports nothing of train/ or eval/."""

import sys
from types import TracebackType


def _report(kind: type[BaseException], failure: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a script's imports still run is no traceback either; later run_script sees to it."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, failure, trace)
        return
    print("error: interrupted", file=sys.stderr)
    raise SystemExit(130)


sys.excepthook = _report
