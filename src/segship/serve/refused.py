"""Every answer that is no success: a status, one line on what is wrong, one on what to do."""

from __future__ import annotations

from segship.errors import InputError, OutputError, PackageError, SegshipError, UsageError


class Refused(Exception):
    """Becomes ``{"error": …, "hint": …}`` with its status; ``retry_after`` in seconds becomes that header."""

    def __init__(self, status: int, error: str, hint: str, *, retry_after: int | None = None, allow: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.retry_after = retry_after
        self.allow = allow

    def body(self) -> dict[str, str]:
        return {"error": self.error, "hint": self.hint}

    def headers(self) -> dict[str, str]:
        headers = {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}
        return headers | ({"allow": self.allow} if self.allow else {})


def shutting_down() -> Refused:
    return Refused(503, "this server is shutting down", "send the request to another one", retry_after=5)


def internal(error: Exception) -> Refused:
    """Of an error nobody expected its kind alone is told; the server's log has the rest."""
    return Refused(500, f"internal error ({type(error).__name__})", "please report it with the server's log")


class Gone(Exception):
    """The client closed its connection; nobody waits for an answer."""


STATUS = {InputError: 422, UsageError: 400, OutputError: 500, PackageError: 500}


def from_segship(error: SegshipError) -> Refused:
    """A library error as an answer: its sentence is split where it goes over to what to do."""
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    wrong, _, hint = " ".join(str(error).split()).partition("; ")
    return Refused(status, wrong, hint or "GET /openapi.json lists what is taken")
