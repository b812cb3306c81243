"""The web page of a preference file: starts a local server that shows its pairs and takes people's labels.

    inspect-preferences serve RUN_OR_FILE [--port N] [--host HOST] [--token TOKEN] [--annotator NAME] [--blind]
        [--no-browser]
"""

from __future__ import annotations

import errno
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path

import uvicorn

from preference.inspection.guard import is_loopback
from preference.inspection.application import make_application
from preference.report_page.text import visible

PORT = 7861
MOST_PORTS = 20  # that are tried from PORT on


def serve(path: Path, *, port: int | None = None, host: str = "127.0.0.1", annotator: str = "",
          token: str | None = None, blind: bool = False, browser: bool = True) -> None:
    """Serve a run's folder or a file of pairs until Ctrl-C.

    Args:
        port: None takes 7861 or the next free one; 0 any free one; another number that one or none.
        host: loopback, or an address of this machine: then everybody needs the token.
        annotator: the name that stands with labels until a person sets another on the page.
        token: what to ask for; made where the host needs one and none is given.
        blind: hide which side was chosen, and what the executor said.
        browser: open the page, where a person sits at the terminal.

    Raises:
        ValueError: no preference file, no such host, or no free port.
    """
    if token is not None and not token.strip():
        raise ValueError("the token is empty; allowed is any text; leave --token out to have one made")
    if not is_loopback(host) and token is None:
        token = secrets.token_urlsafe(24)
    words = f"Reading {visible(str(path))}; the first time a large file takes longest"
    slow = threading.Timer(2.0, print, (words,), {"file": sys.stderr})
    slow.start()
    try:
        application = make_application(path, host=host, annotator=annotator, token=token, blind=blind)
    finally:
        slow.cancel()
    listener = listen(host, port)
    shown_host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    address = f"http://{shown_host}:{listener.getsockname()[1]}/"
    print(f"Serving {visible(str(path))} at {address} (Ctrl-C ends)")
    if token is not None:
        print(f"Whoever opens it needs this token: {token}")
        print("What goes over the network is not encrypted: a tunnel (ssh -L) to a server on loopback is safer.")
    print(f"Labels go to {visible(str(application.site.store.labels_path))}", flush=True)
    if browser and sys.stdout.isatty():
        threading.Timer(0.3, webbrowser.open, (address,)).start()
    # h11_max_incomplete_event_size bounds the head of a request; bodies are bounded by the guard.
    server = uvicorn.Server(uvicorn.Config(
        application, lifespan="off", ws="none", log_level="warning", access_log=False, server_header=False,
        limit_concurrency=200, timeout_graceful_shutdown=3, h11_max_incomplete_event_size=32_768))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down and hands the signal on
    finally:
        application.site.close()
        if rerun := sys.modules.get("preference.inspection.rerun"):  # loaded with the first query
            rerun.close()
        listener.close()
    print("Stopped. Every label is on disk.")


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on the port that is asked for; None: the first free one of PORT and those after it."""
    wanted = list(range(PORT, PORT + MOST_PORTS)) if port is None else [port]
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"the port is {port}; allowed is 0 (any free one) to 65535; choose one of them")
    for number in wanted:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(address)
                listener.listen(128)
            except BaseException:
                listener.close()
                raise
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"cannot listen on {host} port {number} ({error}). Allowed are an address of this machine "
                                 "and a port above 1023. Choose others with --host and --port.") from None
    taken = f"port {wanted[0]}" + (f" to {wanted[-1]}" if len(wanted) > 1 else "")
    raise ValueError(f"{taken} on {host} is taken. Allowed is a free one. Choose it with --port, or --port 0 for any.")
