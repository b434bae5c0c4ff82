"""What a disk refuses, said as Python says it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raises what TensorStore says of the operating system, such as a full disk, as an `OSError` that names `path`."""
    try:
        yield
    except Exception as error:
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        raise
