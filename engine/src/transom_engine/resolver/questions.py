"""A client's message, and answers in the shape that the client can take (RFC 1035, 6891)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from dnslib import DNSRecord

TTL = 1
"""Seconds that an answer about a container holds."""
DATAGRAM, OFFERED, STREAM = 512, 4096, 65535
"""The longest answers, in bytes: as a datagram, as one where RFC 6891 is spoken, and over TCP."""
FORMERR, SERVFAIL, NOTIMP, REFUSED, BADVERS = 1, 2, 4, 5, 16
"""Response codes (RFC 1035, 4.1.1; RFC 6891, 9)."""
_KEPT = 0x7910
"""The bits of a question's header that its answer has too: the opcode, RD, and CD (RFC 4035, 3.1.6)."""


class Question(msgspec.Struct, frozen=True):
    """What a client asked.

    Attributes:
        record: the message; None when it cannot be read, or is none to answer.
        rcode: why it is refused, 0 when it is not.
        name: in lower case, without the last dot; empty in a class other than the Internet's, where nobody has names.
        type: "A", "AAAA", "PTR" and so on.
        limit: the longest answer, in bytes.
    """

    data: bytes
    record: Any = None
    rcode: int = 0
    name: str = ""
    type: str = ""
    limit: int = DATAGRAM

    @classmethod
    def read(cls, data: bytes, *, stream: bool) -> Question:
        """Read a message; nothing is raised whatever it is."""
        from dnslib import CLASS, OPCODE, QTYPE, DNSBuffer, DNSRecord

        if len(data) < 12 or data[2] & 0x80:  # no header, or itself an answer
            return cls(data)
        try:
            record = DNSRecord.parse(data)
            if record.header.opcode != OPCODE.QUERY:
                return cls(data, rcode=NOTIMP)
            if len(record.questions) != 1:
                return cls(data, rcode=FORMERR)
            record.q.pack(DNSBuffer())  # raises where the name is too long, which reading does not mind
            options = _options(record)
            return cls(
                data,
                record=record,
                rcode=BADVERS if options and options.edns_ver else 0,
                name=str(record.q.qname).rstrip(".").lower() if record.q.qclass == CLASS.IN else "",
                type=str(QTYPE.get(record.q.qtype)),
                limit=STREAM if stream else min(max(DATAGRAM, options.edns_len if options else 0), OFFERED),
            )
        except Exception:  # of any kind: whatever a stranger sends, the parser may trip over it
            return cls(data, rcode=FORMERR)

    def answered(self, values: Iterable[str], *, turn: int = 0) -> bytes:
        """Return the answer with those of the values that are of the type in question: none is an answer too.

        Args:
            turn: which of them comes first, counted round and round.
        """
        from dnslib import AAAA, PTR, QTYPE, RR, A

        records = []
        for value in values:
            type = "PTR" if self.type == "PTR" else "AAAA" if ":" in value else "A"
            if self.type in (type, "ANY"):
                rdata = {"PTR": PTR, "AAAA": AAAA, "A": A}[type](value)
                records.append(RR(self.record.q.qname, getattr(QTYPE, type), rdata=rdata, ttl=TTL))
        first = turn % len(records) if records else 0
        reply = self._reply(authoritative=True)
        reply.add_answer(*records[first:], *records[:first])
        return self._cut(reply)

    def failed(self, rcode: int) -> bytes:
        """Return an answer that says no more than that there is none."""
        if self.record is None:
            flags = 0x8080 | int.from_bytes(self.data[2:4]) & _KEPT | rcode  # QR, RA
            return self.data[:2] + struct.pack("!HHHHH", flags, 0, 0, 0, 0)
        return bytes(self._reply(rcode=rcode).pack())

    def fitted(self, answer: bytes) -> bytes:
        """Return another server's answer, cut where it is too long for this client."""
        if len(answer) <= self.limit:
            return answer
        from dnslib import DNSRecord

        try:
            return self._cut(DNSRecord.parse(answer))
        except Exception:
            return self.failed(SERVFAIL)

    def _reply(self, *, authoritative: bool = False, rcode: int = 0) -> DNSRecord:
        from dnslib import EDNS0, DNSHeader, DNSRecord

        asked = self.record.header
        header = DNSHeader(
            id=asked.id, bitmap=asked.bitmap & _KEPT, qr=1, ra=1, aa=int(authoritative), rcode=rcode & 15
        )
        reply = DNSRecord(header, q=self.record.q)
        if _options(self.record):
            reply.add_ar(EDNS0(udp_len=OFFERED, ext_rcode=rcode >> 4))
        return reply

    def _cut(self, reply: DNSRecord) -> bytes:
        """Leave away what does not fit, and say so (RFC 2181, 9)."""
        data = bytes(reply.pack())
        while len(data) > self.limit and reply.rr:
            reply.header.tc = 1
            reply.rr, reply.auth = reply.rr[: len(reply.rr) // 2], []
            data = bytes(reply.pack())
        return data


def _options(record: DNSRecord) -> Any:
    """Return the pseudo-record by which RFC 6891 is spoken; None without."""
    from dnslib import QTYPE

    return next((extra for extra in record.ar if extra.rtype == QTYPE.OPT), None)


def is_answer(answer: bytes, question: bytes) -> bool:
    """Say whether it is an answer to that question: others may have sent it (RFC 5452, 9.1)."""
    end = 12
    while end < len(question) and question[end]:
        end += question[end] + 1
    asked = slice(12, end + 5)
    if len(answer) < 12 or answer[:2] != question[:2] or not answer[2] & 0x80:
        return False
    return answer[4:6] == b"\0\0" or answer[asked].lower() == question[asked].lower()
