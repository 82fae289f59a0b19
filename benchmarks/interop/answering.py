"""What the worker processes beside this file share: one JSON request a line on stdin, one JSON answer a line on stdout.

It runs in each worker's own environment and needs Python alone.
"""

import json
import sys
from importlib import metadata


def versions(*names):
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


def answer(requests):
    """Until stdin ends: the request's ``do`` names one of ``requests``, which gets the rest of it."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the library prints must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            found = requests[request.pop("do")](**request)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)
