"""How clients of a detector process reach it: a socket of this machine, a key, and limits on silence."""

import os
import socket
import struct
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

HANDSHAKE_WITHIN_S = 10
# A client waits for those before it too.
_CONNECT_WITHIN_S = 120


def listen(address: str) -> socket.socket:
    """A socket on which a `Server` takes connections."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    return listener


def connect(address: str, key: bytes) -> Connection:
    """A client's connection to a `Server`.

    Raises OSError (TimeoutError where nobody answers), EOFError, and AuthenticationError for a wrong key.
    """
    with socket.socket(socket.AF_UNIX) as ours:
        try:
            _limit(ours, _CONNECT_WITHIN_S)
            ours.connect(address)
            connection = Connection(os.dup(ours.fileno()))
            try:
                answer_challenge(connection, key)
                deliver_challenge(connection, key)
                _limit(ours, 0)
            except BaseException:
                connection.close()
                raise
        except BlockingIOError as error:
            raise TimeoutError(f"no connection within {_CONNECT_WITHIN_S} s") from error
    return connection


def welcome(theirs: socket.socket, key: bytes) -> Connection:
    """The server's side of `connect`. Anybody on the machine can knock, and then say nothing."""
    with theirs:
        if hasattr(socket, "SO_PEERCRED"):
            peer = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", peer)[1] != os.geteuid():
                raise AuthenticationError("a process of another user")
        _limit(theirs, HANDSHAKE_WITHIN_S)
        connection = Connection(os.dup(theirs.fileno()))
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            _limit(theirs, 0)
        except BaseException:
            connection.close()
            raise
    return connection


def _limit(of: socket.socket, seconds: int) -> None:
    """How long one read or write may take; 0 is for ever. In the kernel, as `Connection` knows no limits."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        of.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
