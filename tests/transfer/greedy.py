"""A process that asks by zmq for far more than it takes; and the handle by which tests drive it."""

import json
import struct
import sys
from collections.abc import Iterable

import zmq

from tests.transfer.driven import Driven, say
from transfer.engines.base import Source
from transfer.engines.zmq import CHUNK_BYTES


class Greedy(Driven):
    def __init__(self) -> None:
        super().__init__(__name__, [])

    def ask_for(self, source: Source, times: int) -> None:
        """Asks so many times for the first bytes of a slot, at most one chunk."""
        location = source.location
        numbers = (location.offset, location.generation, 0, min(CHUNK_BYTES, location.length))
        self.do("ask", source.address, source.incarnation, location.arena, numbers, times)

    def take(self) -> list[str]:
        """What the next answer is, and its last byte if it has data."""
        answer: list[str] = self.do("take")
        return answer


def serve(commands: Iterable[str]) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.set(zmq.RCVHWM, 1)
        dealer.set(zmq.RCVBUF, 1 << 16)  # what is not taken stays with the server
        for line in commands:
            match json.loads(line):
                case ["ask", address, incarnation, arena, numbers, times]:
                    dealer.connect(address)
                    request = [incarnation.encode(), arena.encode(), struct.pack("<4Q", *numbers)]
                    for _ in range(times):
                        dealer.send_multipart(request)
                    say(None)
                case ["take"]:
                    kind, *_, detail = dealer.recv_multipart()
                    say([kind.decode(), detail[-1:].hex()])


def main() -> None:
    serve(sys.stdin)
