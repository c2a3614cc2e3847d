"""The two messages of `/pull-updates` that the tests write and read themselves."""


class Header:
    """The first message of an answer."""

    def __init__(self, fields):
        self.revision = fields.get(1, b"").decode()
        self.pages = fields.get(2, 0)


def varint(number):
    """Base 128, least first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def text(field, value):
    """A length-delimited field."""
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def number(field, value):
    """A varint field."""
    return varint(field << 3) + varint(value)


def parse(answer):
    """The header of an answer, and its pages as {page id: bytes}."""
    messages = iter(_messages(answer))
    header = Header(_fields(next(messages)))
    pages = {}
    for message in messages:
        fields = _fields(message)
        pages[fields.get(1, 0)] = fields[2]
    return header, pages


def _read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _messages(answer):
    at = 0
    while at < len(answer):
        length, at = _read_varint(answer, at)
        if at + length > len(answer):
            raise ValueError("the answer ends inside a message")
        yield answer[at : at + length]
        at += length


def _fields(message):
    fields, at = {}, 0
    while at < len(message):
        key, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if key & 7 == 2:
            value, at = message[at : at + value], at + value
        fields[key >> 3] = value
    return fields
